"""ticketsvc: PATCH /api/v1/tickets/{id} writes exactly the fields in the body.

The wire contract is in openapi.json; models.py holds the tables, schemas.py the
validation, database.py how a statement reaches the disk, and upgrade.py how a start
brings an old database up to date.
"""

import functools
import hmac
import ipaddress
import json
import logging
import os
import re
import secrets
import sys
from pathlib import Path
from urllib.parse import unquote_to_bytes

from flask import Blueprint, Flask, Response, abort, current_app, g, request, url_for
from flask.logging import default_handler
from marshmallow import ValidationError
from werkzeug.exceptions import (
    HTTPException,
    InternalServerError,
    ServiceUnavailable,
    UnsupportedMediaType,
)
from werkzeug.routing import IntegerConverter

import models
import schemas
from database import Busy
from models import Cursor, Ticket

MAX_BODY = 1024 * 1024  # bytes
MAX_PAGE = 8 * 1024 * 1024  # bytes
MAX_TAGS = 100
MAX_SHOWN_HOST = 100  # characters
MAX_SHOWN_KEY = 100  # characters
MAX_SHOWN_PATH = 200  # characters
OPEN_PATHS = ("/api/health", "/api/openapi.json")
FILED_ONCE = ("user_description", "confidence_score")
# Visible ASCII but the comma: servers join a header that is sent twice with one.
IDEMPOTENCY_KEY = re.compile(r"[!-+\--~]{1,255}")
REQUEST_ID = re.compile("[A-Za-z0-9._-]{1,128}")
# RFC 9110, sections 8.8.3 and 5.6.1: a recipient takes empty elements of a list.
ENTITY_TAGS = re.compile(r'[ \t,]*((W/)?"[!#-~\x80-\xff]*"[ \t]*(,[ \t,]*|$))+')
ENTITY_TAG = re.compile('(W/)?"([^"]*)"')
LOG_FORMAT = "[%(asctime)s] [%(process)d] [%(levelname)s] [%(request_id)s] %(message)s"
OPENAPI = Path(__file__).with_name("openapi.json").read_text("utf-8")
ACCEPT_PATCH = "application/json, application/merge-patch+json"
ERROR_MESSAGES = {
    405: "The method is not allowed for this path",
    413: "Request body is larger than 1 MiB",
    500: "Internal server error",
}
ERROR_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    415: {"Accept-Patch": ACCEPT_PATCH},
}
TICKET_NOT_FOUND = "Ticket not found"
TICKET_CHANGED = "Ticket has changed since it was read"

bp = Blueprint("api", __name__, url_prefix="/api")
gunicorn_conf_is_read = False  # gunicorn.conf.py sets it.


def _refuse_constant(name):
    raise ValueError(f"it contains {name}")


def _refuse_repeated_keys(pairs):
    """Return the pairs of a JSON object as a dict, or raise ValueError."""
    body = {}
    for key, value in pairs:
        if key in body:
            # UTF-8 has no unpaired surrogates: they stay escaped.
            shown = encode(key).encode("utf-8", "backslashreplace").decode()
            raise ValueError(f"{shown[:MAX_SHOWN_KEY]} is given twice")
        body[key] = value
    return body


encode = json.JSONEncoder(ensure_ascii=False).encode
# Every number becomes a float, so that Python's limit on the digits of an integer does
# not apply to unknown keys.
decode = json.JSONDecoder(
    parse_constant=_refuse_constant,
    parse_int=float,
    object_pairs_hook=_refuse_repeated_keys,
).decode


class JSONResponse(Response):
    """A response that is JSON unless it says otherwise, the empty ones included."""

    default_mimetype = "application/json"


def json_response(body, status=200, headers=None):
    return JSONResponse(f"{encode(body)}\n", status, headers)


def ticket_response(ticket, status=200, headers=None):
    """Answer with one ticket and its strong ETag (RFC 9110, section 8.8.3)."""
    response = json_response(schemas.ticket_schema.dump(ticket), status, headers)
    response.set_etag(models.entity_tag(ticket))
    return response


def page_response(rows, schema, query, bound, key):
    """Answer with `rows` up to the limit and MAX_PAGE, and a link to the rest.

    The next page begins after the last row of this one: its `key` is the value of the
    query parameter `bound`.
    """
    parts = []
    size = 0  # bytes
    last = None
    link = None
    for row in rows:
        part = encode(schema.dump(row)).encode()
        size += len(part)
        is_full = len(parts) == query["limit"] or size > MAX_PAGE
        if parts and is_full:
            following = {**query, bound: last[key]}
            path = url_for(request.endpoint, **request.view_args, **following)
            link = f'<{path}>; rel="next"'
            break
        parts.append(part)
        last = row

    return array_response(parts, link)


def array_response(parts, link=None):
    """Answer with an array of JSON texts in bytes, and a Link if there is one."""
    response = JSONResponse(b"[" + b", ".join(parts) + b"]\n")
    if link is not None:
        response.headers["Link"] = link
    return response


def read_body(length):
    """Return the bytes of the body, or abort with 413, 408 or 400.

    `length` is its Content-Length, 0 without the header.
    """
    if length > MAX_BODY:
        abort(413)
    try:
        # One byte more than is allowed tells a chunked body that is too large.
        data = request.stream.read(MAX_BODY + 1)
    except TimeoutError:
        abort(408, "Request body did not arrive in time")
    except Exception:
        # A client that went away, or a malformed chunk: each server has its own type.
        abort(400, "Request body could not be read")
    if len(data) > MAX_BODY:
        abort(413)
    return data


class UnsupportedEncoding(UnsupportedMediaType):
    """A body with a Content-Encoding (RFC 9110, section 15.5.16)."""

    description = "Content-Encoding must be identity"

    def get_headers(self, *args, **kwargs):
        return [*super().get_headers(*args, **kwargs), ("Accept-Encoding", "identity")]


def check_content_encoding():
    """Abort with 415 if the body is compressed, or says so."""
    for coding in request.headers.get("Content-Encoding", "").split(","):
        if coding.strip().lower() not in ("", "identity"):
            raise UnsupportedEncoding


def parse_json(data):
    """Return the JSON value in bytes, or abort with a sentence that says why not."""
    try:
        text = data.decode("utf-8")
        if text.startswith("\ufeff"):
            raise ValueError("it begins with a byte order mark")
        return decode(text)
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except RecursionError:
        reason = "it is nested too deeply"
    except json.JSONDecodeError as error:
        message = error.msg.removesuffix(" at")  # As in "Invalid control character at".
        reason = f"{message} at line {error.lineno}, column {error.colno}"
    except ValueError as error:
        reason = str(error)
    abort(400, f"Request body is not valid JSON: {reason}")


def load_body():
    """Return the JSON object in the body, {} without a body, or abort."""
    length = request.content_length or 0
    data = read_body(length)
    if not data and length == 0:
        return {}
    check_content_encoding()
    if not request.is_json:
        sentence = "Content-Type must be application/json or application/*+json, "
        if request.mimetype:
            abort(415, f"{sentence}not {request.mimetype[:100]}")
        abort(415, f"{sentence}and none was sent")
    if len(data) < length:
        abort(400, "Request body is shorter than its Content-Length")
    body = parse_json(data)
    if not isinstance(body, dict):
        abort(400, "Request body must be a JSON object")
    return body


def load_query(schema):
    """Return the query as the schema loads it."""
    query = {}
    for name, values in request.args.lists():
        # A parameter given twice stays a list, which no field takes.
        query[name] = values[0] if len(values) == 1 else values
    return schema.load(query)


def entity_tags(name, weak):
    """Return the tags in a conditional header (RFC 9110, section 13.1), without quotes.

    Return None without the header, and "*" for any tag. With `weak`, weak tags count
    like strong ones (weak comparison, RFC 9110, section 8.8.3.2); without, they match
    nothing and are left out.
    """
    value = request.headers.get(name)
    if value is None:
        return None
    if value.strip() == "*":
        return "*"
    if not ENTITY_TAGS.fullmatch(value) or value.count('"') > 2 * MAX_TAGS:
        abort(400, f"{name} must be * or entity tags in double quotes")
    return [tag for mark, tag in ENTITY_TAG.findall(value) if weak or not mark]


def load_conditions():
    """Return the tags of If-Match and those of If-None-Match."""
    match = entity_tags("If-Match", weak=False)
    none_match = entity_tags("If-None-Match", weak=True)
    return match, none_match


def load_idempotency_key():
    """Return the Idempotency-Key, None without the header, or abort with 400."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
        abort(
            400,
            "Idempotency-Key must be 1 to 255 visible ASCII characters "
            "without a comma, sent once",
        )
    return key


@bp.before_app_request
def begin_request():
    """Give a request its id; check its host and its token before anything else."""
    identify_request()
    if request.path not in OPEN_PATHS:
        require_trusted_host()
        require_token()


def identify_request():
    """Take the caller's X-Request-ID over if it is valid, else make one."""
    given = request.headers.get("X-Request-ID", "")
    g.request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
    g.caller = None


def require_trusted_host():
    """Refuse a request for this host by a name that is not its own.

    Without a token, any web page that somebody on this host opens could otherwise send
    requests to the service, by a name that resolves to 127.0.0.1 (DNS rebinding).
    """
    config = current_app.config
    trusted_hosts = config["HOSTS"]
    if config["TOKENS"] and trusted_hosts is None:
        return

    host = host_without_port(request.environ.get("HTTP_HOST", ""))
    if trusted_hosts is None:
        if not is_loopback(host):
            advice = "set TICKETSVC_TOKENS or TICKETSVC_TRUSTED_HOSTS"
            refuse_host(host, f"is not trusted: {advice}")
    elif host not in trusted_hosts and "*" not in trusted_hosts:
        refuse_host(host, "is not trusted")


def refuse_host(host, reason):
    """Abort with 400; `host` is empty if the request names none."""
    shown = f"Host {host[:MAX_SHOWN_HOST]}" if host else "Host"
    abort(400, f"{shown} {reason}")


# Cached, because nearly all requests have the same Host.
@functools.lru_cache(maxsize=64)
def host_without_port(value):
    """Return the name or the address in a Host header (RFC 9110, 7.2) in lower case."""
    return re.sub(":[0-9]*$", "", value.strip()).lower()


@functools.lru_cache(maxsize=64)
def is_loopback(host):
    """Return whether a name or an address is one of this host's own."""
    if host in ("localhost", "[::1]"):
        return True
    try:
        return ipaddress.IPv4Address(host).is_loopback
    except ValueError:
        return False


def require_token():
    """Refuse a request without one of the tokens (RFC 6750)."""
    tokens = current_app.config["TOKENS"]
    if not tokens:
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not given.strip():
        abort(401, "A token is needed: send Authorization: Bearer <token>")
    # WSGI passes headers as Latin-1. Every token is compared, so that the time taken
    # does not tell which of them came close.
    given = given.strip().encode("latin-1")
    names = [name for name, token in tokens if hmac.compare_digest(given, token)]
    if not names:
        abort(401, "The token is not valid")
    g.caller = names[0]
    request.environ["REMOTE_USER"] = g.caller or "-"


@bp.after_app_request
def add_headers(response):
    """Add what every answer carries; for OPTIONS, also Accept-Patch (RFC 5789, 3.1)."""
    response.headers["X-Request-ID"] = g.request_id
    response.headers["Cache-Control"] = "no-cache"
    if request.method == "OPTIONS" and "PATCH" in response.allow:
        response.headers["Accept-Patch"] = ACCEPT_PATCH
    return response


@bp.patch("/v1/tickets/<int:ticket_id>")
def update_ticket(ticket_id):
    """Write the fields present in the body; leave the others alone."""
    changes = schemas.ticket_patch_schema.load(load_body())
    if not changes:
        abort(400, "No valid fields to update")
    match, none_match = load_conditions()
    ticket = Ticket.patch(ticket_id, changes, g.caller, match, none_match)
    if ticket is not None:
        return ticket_response(ticket)

    has_condition = match is not None or none_match is not None
    if has_condition and Ticket.find(ticket_id) is not None:
        abort(412, TICKET_CHANGED)
    current_app.logger.warning("PATCH of ticket %d, which does not exist", ticket_id)
    if current_app.config["MISSING_STATUS"] == 404:
        abort(404, TICKET_NOT_FOUND)
    abort(500)


@bp.post("/v1/tickets")
def create_ticket():
    """File a ticket with what a classifier said of it, once per Idempotency-Key."""
    values = schemas.ticket_schema.load(load_body())
    key = load_idempotency_key()
    status = 201
    ticket = Ticket.add(values, g.caller, key)
    if ticket is None:  # The key was used before.
        status = 200
        ticket = Ticket.find_by_key(key)
        if any(ticket[name] != values.get(name) for name in FILED_ONCE):
            abort(422, "Idempotency-Key was used for another ticket")
    location = url_for(".get_ticket", ticket_id=ticket["id"])
    return ticket_response(ticket, status, {"Location": location})


@bp.get("/v1/tickets/<int:ticket_id>")
def get_ticket(ticket_id):
    """Answer with one ticket, or 304 if the client has it already."""
    # Not make_conditional(), which takes If-Match: * for a tag and adds a second Date.
    match, none_match = load_conditions()
    ticket = Ticket.find(ticket_id)
    if ticket is None:
        abort(404, TICKET_NOT_FOUND)
    tag = models.entity_tag(ticket)
    if match is not None and match != "*" and tag not in match:
        abort(412, TICKET_CHANGED)
    response = ticket_response(ticket)
    if none_match is not None and (none_match == "*" or tag in none_match):
        response.status_code = 304
    return response


@bp.get("/v1/tickets")
def list_tickets():
    """Answer with a page of tickets, newest first, or oldest first with ?after=."""
    query = load_query(schemas.ticket_query_schema)
    bound = "after" if "after" in query else "before"
    tickets = Ticket.page(**query)
    return page_response(tickets, schemas.ticket_schema, query, bound, "id")


@bp.get("/v1/tickets/<int:ticket_id>/history")
def list_versions(ticket_id):
    """Answer with a page of the versions of a ticket, newest first."""
    query = load_query(schemas.page_query_schema)
    ticket = Ticket.find(ticket_id)
    if ticket is None:
        abort(404, TICKET_NOT_FOUND)
    versions = Ticket.history(ticket, **query)
    return page_response(versions, schemas.version_schema, query, "before", "version")


@bp.get("/v1/changes")
def list_changes():
    """Answer with tickets filed, changed or deleted after a cursor, as they are now."""
    query = load_query(schemas.change_query_schema)
    try:
        newest = Ticket.newest()
    except Busy:
        raise ServiceUnavailable("Database is busy", retry_after=1) from None

    # A follower without a cursor reads every ticket as it is now: no change before.
    since = query.get("since", Cursor(0, newest.version_id))
    is_known = (
        since.ticket_id <= newest.ticket_id and since.version_id <= newest.version_id
    )
    if not is_known:
        raise ValidationError({"since": ["Not a cursor of this database."]})

    parts = {}  # A ticket that has changed twice is in a page once.
    size = 0  # bytes
    for cursor, ticket in Ticket.changes(since, newest, query["limit"]):
        if ticket["id"] not in parts:
            part = encode_change(ticket)
            if parts and size + len(part) > MAX_PAGE:
                break
            parts[ticket["id"]] = part
            size += len(part)
        since = cursor

    following = {"since": str(since)}
    if "limit" in request.args:
        following["limit"] = query["limit"]
    link = f'<{url_for(".list_changes", **following)}>; rel="next"'
    return array_response([parts[ticket_id] for ticket_id in sorted(parts)], link)


def encode_change(ticket):
    """Return a ticket (a dict) as the feed shows it, as the bytes of a JSON object."""
    schema = schemas.changed_ticket_schema
    if "deleted" in ticket:
        schema = schemas.deleted_ticket_schema
    return encode(schema.dump(ticket)).encode()


@bp.get("/health")
def get_health():
    """Answer with the database's time, or 503 if it does not answer."""
    try:
        timestamp = Ticket.clock()
    except Exception as error:
        current_app.logger.exception("Database unavailable: %s", error)
        abort(503, "Database unavailable")
    return json_response({"status": "ok", "timestamp": timestamp})


@bp.get("/openapi.json")
def get_openapi():
    """Answer with the contract as OpenAPI 3.1."""
    return JSONResponse(OPENAPI)


def requested_path():
    """Return the path as the client sent it, decoded, with the prefix."""
    target = request.environ.get("RAW_URI")
    if target is None:  # WSGI does not ask a server for it.
        return f"{request.root_path}{request.path}"
    path, _, _ = target.partition("?")
    if not path.startswith("/"):  # The absolute form (RFC 9112, section 3.2.2).
        path = re.sub("^[^/]*//[^/]*", "", path) or "/"
    # WSGI passes bytes as Latin-1.
    return unquote_to_bytes(path.encode("latin-1")).decode("utf-8", "replace")


def handle_http_error(error):
    """Build the body of every error but a validation error."""
    response = error.get_response()
    message = error.description
    is_werkzeugs = message == type(error).description  # Not one given to abort().
    if is_werkzeugs and error.code == 404:
        message = f"No such path: {requested_path()[:MAX_SHOWN_PATH]}"
    elif is_werkzeugs:
        message = ERROR_MESSAGES.get(error.code, message)
    response.data = f"{encode({'error': message})}\n"
    response.mimetype = "application/json"
    response.headers.update(ERROR_HEADERS.get(error.code, {}))
    return response


def handle_validation_error(error):
    """Name every bad field of the body or the query."""
    return json_response(
        {"error": "Invalid field values", "fields": error.messages}, 400
    )


def handle_failure(error):
    """Log an unexpected exception, its cause in the first line; answer with 500."""
    current_app.logger.exception(
        "%s %s failed: %s", request.method, request.path, error
    )
    return handle_http_error(InternalServerError())


class TicketIdConverter(IntegerConverter):
    """A plain decimal number; the default one also takes other scripts' digits."""

    regex = "[0-9]+"

    def to_python(self, value):
        # Python refuses to convert more than 4,300 digits; no id has as many.
        return int(value.lstrip("0")[:4000] or "0")


LEVELS = ("debug", "info", "warning", "error", "critical")
# A name is what the log and the history show of a token (RFC 6750, 2.1: b64token).
TOKEN = r" *(?:[A-Za-z0-9._-]+:)?[A-Za-z0-9._~+/-]+=* *"

# A name, an IPv4 or an IPv6 address, or any host.
IPV6 = "[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]*"
TRUSTED_HOST = rf" *(?:[A-Za-z0-9._-]+|{IPV6}|\[{IPV6}\]|\*) *"


class Setting:
    """A variable: its default, the pattern of its values, and how that is said."""

    def __init__(self, default, pattern, advice):
        self.default = default
        self.pattern = pattern
        self.advice = advice


SETTINGS = {
    "DATABASE_URL": Setting(
        "sqlite:///tickets.db", ".+", "a URL, as in sqlite:///tickets.db"
    ),
    "TICKETSVC_MISSING_STATUS": Setting("500", "404|500", "404 or 500"),
    "TICKETSVC_LOG_LEVEL": Setting(
        "info", f"(?i:{'|'.join(LEVELS)})", f"one of {', '.join(LEVELS)}"
    ),
    "TICKETSVC_POOL_SIZE": Setting("8", "[1-9][0-9]?", "1 to 99 connections"),
    "TICKETSVC_TOKENS": Setting(
        None,
        f"{TOKEN}(?:,{TOKEN})*",
        "tokens of A-Z a-z 0-9 - . _ ~ + / or name:token, separated by single commas",
    ),
    "TICKETSVC_TRUSTED_HOSTS": Setting(
        None,
        f"{TRUSTED_HOST}(?:,{TRUSTED_HOST})*",
        "names or addresses of hosts without ports, or *, separated by single commas",
    ),
    "WEB_CONCURRENCY": Setting("2", "[1-9][0-9]{0,2}", "1 to 999 worker processes"),
}


def read_settings(environ):
    """Return the settings in `environ` as Flask config, or exit with one line."""
    values = {}
    for name, setting in SETTINGS.items():
        value = environ.get(name, setting.default)
        if value is not None and not re.fullmatch(setting.pattern, value):
            sys.exit(f"{name} must be {setting.advice}")
        values[name] = value

    for name in environ:
        is_ours = name.startswith("TICKETSVC_") and not name.startswith(
            "TICKETSVC_TEST_"
        )
        if is_ours and name not in SETTINGS:
            sys.exit(f"{name} is not a setting")

    return {
        "DATABASE_URL": values["DATABASE_URL"],
        # Not TRUSTED_HOSTS: Flask would apply that to the open paths too.
        "HOSTS": parse_hosts(values["TICKETSVC_TRUSTED_HOSTS"]),
        "LOG_LEVEL": values["TICKETSVC_LOG_LEVEL"].upper(),
        "MISSING_STATUS": int(values["TICKETSVC_MISSING_STATUS"]),
        "POOL_SIZE": int(values["TICKETSVC_POOL_SIZE"]),
        "TOKENS": parse_tokens(values["TICKETSVC_TOKENS"]),
        "WORKERS": int(values["WEB_CONCURRENCY"]),
    }


def parse_tokens(text):
    """Return [(name or None, token as bytes), …] for "name:token,token,…" or None."""
    tokens = []
    for part in (text or "").split(","):
        name, _, token = part.strip().rpartition(":")
        if token:
            tokens.append((name or None, token.encode()))

    if models.REVERTER in [name for name, _ in tokens]:
        sys.exit(f"TICKETSVC_TOKENS must not name a token {models.REVERTER}")
    if len({token for _, token in tokens}) < len(tokens):
        sys.exit("TICKETSVC_TOKENS must not have a token twice")
    return tokens


def parse_hosts(text):
    """Return the hosts in "name,address,…" as Host headers have them, or None."""
    if text is None:
        return None
    hosts = set()
    for part in text.lower().split(","):
        host = part.strip().strip("[]")
        hosts.add(f"[{host}]" if ":" in host else host)
    return hosts


def add_request_id(record):
    """Give a log record the id of the request it is about."""
    record.request_id = g.get("request_id", "-") if g else "-"
    return True


def configure_logging(app):
    """Log from the configured level on, with the id of the request in each line."""
    app.logger.setLevel(app.config["LOG_LEVEL"])
    app.logger.addFilter(add_request_id)
    default_handler.setFormatter(logging.Formatter(LOG_FORMAT, "%Y-%m-%d %H:%M:%S %z"))


def open_database(app):
    """Bring the database up to date, or end the process with one line."""
    try:
        is_new = models.prepare(app.config["DATABASE_URL"], app.config["POOL_SIZE"])
    except ValueError as error:
        sys.exit(f"DATABASE_URL: {error}")

    backend = models.backend
    if is_new:
        # A warning, because a mistyped path looks like success otherwise.
        app.logger.warning("New database %s", backend.name)
    version = json.loads(OPENAPI)["info"]["version"]
    app.logger.info("ticketsvc %s on %s, %s", version, backend.name, backend.host)


def warn_without_gunicorn_conf(app, environ):
    """Warn when gunicorn runs the application, but has not read gunicorn.conf.py."""
    is_gunicorn = environ.get("SERVER_SOFTWARE", "").startswith("gunicorn/")
    if is_gunicorn and not gunicorn_conf_is_read:
        app.logger.warning(
            "gunicorn has not read gunicorn.conf.py, which it looks for in the folder "
            "it is started in: no request log, no protection from slow clients, "
            "other defaults"
        )


def create_app(environ=os.environ):
    """Return the WSGI application set up by `environ`, its database ready for use."""
    app = Flask(__name__, static_folder=None)
    app.config.update(read_settings(environ))
    configure_logging(app)
    warn_without_gunicorn_conf(app, environ)
    if "DYNO" in environ and app.config["DATABASE_URL"].startswith("sqlite"):
        app.logger.warning(
            "DATABASE_URL: a file on the disk of a dyno does not outlive its restart"
        )
    open_database(app)

    app.response_class = JSONResponse
    app.url_map.merge_slashes = False
    app.url_map.converters["int"] = TicketIdConverter
    app.register_blueprint(bp)
    # On the app, because an error of routing belongs to no blueprint.
    app.register_error_handler(HTTPException, handle_http_error)
    app.register_error_handler(ValidationError, handle_validation_error)
    app.register_error_handler(Exception, handle_failure)
    return app
