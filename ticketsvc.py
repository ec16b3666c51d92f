"""ticketsvc: PATCH /api/v1/tickets/{id} writes exactly the fields in the body.

The wire contract is in openapi.json; models.py holds the table, schemas.py the validation.
"""

import hmac
import json
import logging
import os
import re
import sys
import uuid
from pathlib import Path
from urllib.parse import urlencode

from flask import Blueprint, Flask, Response, abort, current_app, g, has_request_context, request
from flask.logging import default_handler
from gunicorn.http.errors import ParseException
from marshmallow import ValidationError
from peewee import PeeweeException
from werkzeug.exceptions import HTTPException, InternalServerError
from werkzeug.routing import IntegerConverter

import models
from models import Ticket
from schemas import (
    ticket_patch_schema,
    ticket_query_schema,
    ticket_schema,
    tickets_schema,
)

MAX_BODY = 1024 * 1024  # bytes
OPEN_PATHS = ("/api/health", "/api/openapi.json")
REQUEST_ID = re.compile("[A-Za-z0-9._-]{1,128}")
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
LOG_FORMAT = "[%(asctime)s] [%(process)d] [%(levelname)s] [%(request_id)s] %(message)s"
OPENAPI = Path(__file__).with_name("openapi.json").read_text("utf-8")
ACCEPT_PATCH = "application/json, application/merge-patch+json"
ERROR_MESSAGES = {413: "Request body is larger than 1 MiB", 500: "Internal server error"}
ERROR_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 415: {"Accept-Patch": ACCEPT_PATCH}}
TICKET_NOT_FOUND = "Ticket not found"
TICKET_CHANGED = "Ticket has changed since it was read"

bp = Blueprint("api", __name__, url_prefix="/api")


def _refuse_constant(name):
    raise ValueError(f"{name} is not JSON")


encode = json.JSONEncoder(ensure_ascii=False).encode
# Every number becomes a float, which also spares unknown keys Python's limit
# on the digits of an integer.
decode = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=float).decode


class JSONResponse(Response):
    """A response that is JSON unless it says otherwise, the empty ones included."""

    default_mimetype = "application/json"


def json_response(body, status=200, headers=None):
    return JSONResponse(f"{encode(body)}\n", status, headers)


def ticket_response(ticket, status=200, headers=()):
    """Answer with one ticket and its strong ETag (RFC 9110, section 8.8.3)."""
    headers = [*headers, ("ETag", f'"{ticket["version"]}"')]
    return json_response(ticket_schema.dump(ticket), status, headers)


def load_body():
    """Return the JSON object in the body, {} where there is none, or abort with 413, 415 or 400."""
    length = request.content_length or 0
    if length > MAX_BODY:
        abort(413)
    try:
        # gunicorn ends this stream with the body, of which one byte more than is allowed tells.
        data = request.environ["wsgi.input"].read(MAX_BODY + 1)
    except BlockingIOError:  # The patience set in gunicorn.conf.py is over.
        abort(408, "Request body did not arrive in time")
    except (OSError, ParseException):  # A client that went away, or a malformed chunk.
        abort(400, "Request body could not be read")
    if len(data) > MAX_BODY:
        abort(413)
    if not data and not length:
        return {}
    if not request.is_json:
        abort(415, "Content-Type must be application/json or application/*+json")
    if len(data) < length:
        abort(400, "Request body is shorter than its Content-Length")
    try:
        body = decode(data.decode("utf-8"))
    except (ValueError, RecursionError):
        abort(400, "Request body is not valid JSON")
    if not isinstance(body, dict):
        abort(400, "Request body must be a JSON object")
    return body


def if_match_versions():
    """Return the versions named by If-Match (RFC 9110, section 13.1.1), or None for any version."""
    if "If-Match" not in request.headers or request.if_match.star_tag:
        return None
    tags = request.if_match.as_set()
    return [int(tag) for tag in tags if tag and tag.isascii() and tag.isdigit() and len(tag) < 19]


@bp.before_app_request
def identify_request():
    """Take the caller's X-Request-ID over where it is sane, else make one."""
    given = request.headers.get("X-Request-ID", "")
    g.request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


@bp.before_app_request
def require_token():
    """Let only a bearer of one of the tokens in (RFC 6750), before anything else is looked at."""
    tokens = current_app.config["TOKENS"]
    if not tokens or request.path in OPEN_PATHS:
        return
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    # WSGI hands headers over as Latin-1; every token is compared, so that the
    # time taken does not tell which of them came close.
    given = token.strip().encode("latin-1")
    matches = [hmac.compare_digest(given, known) for known in tokens]
    if scheme.lower() != "bearer" or not any(matches):
        abort(401, "Missing or invalid token")


@bp.after_app_request
def add_headers(response):
    """Send the request's id, and on OPTIONS what PATCH takes (RFC 5789, section 3.1)."""
    response.headers["X-Request-ID"] = g.request_id
    if request.method == "OPTIONS" and "PATCH" in response.allow:
        response.headers["Accept-Patch"] = ACCEPT_PATCH
    return response


@bp.teardown_app_request
def release_connection(error):
    """Let the next request have the connection, where there is a pool of them."""
    models.database.release()


@bp.patch("/v1/tickets/<int:ticket_id>")
def update_ticket(ticket_id):
    """Write the fields present in the body; leave the others alone."""
    changes = ticket_patch_schema.load(load_body())
    if not changes:
        abort(400, "No valid fields to update")
    versions = if_match_versions()
    ticket = Ticket.patch(ticket_id, changes, versions)
    if ticket is not None:
        return ticket_response(ticket)
    if versions is not None and Ticket.find(ticket_id) is not None:
        abort(412, TICKET_CHANGED)
    current_app.logger.warning("PATCH of ticket %d, which does not exist", ticket_id)
    abort(current_app.config["MISSING_STATUS"], TICKET_NOT_FOUND)


@bp.post("/v1/tickets")
def create_ticket():
    """File a ticket with whatever a classifier said of it."""
    ticket = Ticket.add(ticket_schema.load(load_body()))
    return ticket_response(ticket, 201, [("Location", f"/api/v1/tickets/{ticket['id']}")])


@bp.get("/v1/tickets/<int:ticket_id>")
def get_ticket(ticket_id):
    """Answer with one ticket, or 304 where the client has it already."""
    ticket = Ticket.find(ticket_id)
    if ticket is None:
        abort(404, TICKET_NOT_FOUND)
    # Not make_conditional(), which takes If-Match: * for a tag and adds a second Date.
    versions = if_match_versions()
    if versions is not None and ticket["version"] not in versions:
        abort(412, TICKET_CHANGED)
    response = ticket_response(ticket)
    if request.if_none_match.contains_weak(str(ticket["version"])):
        response.status_code = 304
    return response


@bp.get("/v1/tickets")
def list_tickets():
    """Answer with a page of tickets, newest first, and a link to the next page."""
    # A parameter given twice stays a list, which no field of the schema takes.
    given = {
        name: values[0] if len(values) == 1 else values for name, values in request.args.lists()
    }
    query = ticket_query_schema.load(given)
    limit = query["limit"]
    tickets = Ticket.page(**{**query, "limit": limit + 1})
    response = json_response(tickets_schema.dump(tickets[:limit]))
    if len(tickets) > limit:
        following = urlencode({**query, "before": tickets[limit - 1]["id"]})
        response.headers["Link"] = f'<{request.path}?{following}>; rel="next"'
    return response


@bp.get("/health")
def get_health():
    """Answer with the database's time, or 503 where it does not answer."""
    try:
        return json_response({"status": "ok", "timestamp": Ticket.clock()})
    except PeeweeException as error:
        current_app.logger.exception("Database unavailable: %s", error)
        abort(503, "Database unavailable")


@bp.get("/openapi.json")
def get_openapi():
    """Answer with the contract as OpenAPI 3.1."""
    return JSONResponse(OPENAPI)


def handle_http_error(error):
    """Build the body of every error but a validation error."""
    response = error.get_response()
    message = ERROR_MESSAGES.get(error.code, error.description)
    response.data = f"{encode({'error': message})}\n"
    response.mimetype = "application/json"
    response.headers.update(ERROR_HEADERS.get(error.code, {}))
    return response


def handle_validation_error(error):
    """Name every bad field of the body or the query."""
    return json_response({"error": "Invalid field values", "fields": error.messages}, 400)


def handle_failure(error):
    """Log what nobody foresaw, its cause in the first line, and keep it from the client."""
    current_app.logger.exception("%s %s failed: %s", request.method, request.path, error)
    return handle_http_error(InternalServerError())


class TicketIdConverter(IntegerConverter):
    """A plain decimal number; the default one also takes other scripts' digits."""

    regex = "[0-9]+"

    def to_python(self, value):
        # Python refuses to convert more than 4,300 digits; no id has as many.
        return int(value[:4000])


def read_settings(environ):
    """Return the settings in `environ` as Flask config, or end the process with one line."""
    missing_status = environ.get("TICKETSVC_MISSING_STATUS") or "500"
    if missing_status not in ("404", "500"):
        sys.exit("TICKETSVC_MISSING_STATUS must be 404 or 500")
    tokens = [token.strip() for token in environ.get("TICKETSVC_TOKENS", "").split(",")]
    if len(tokens) > 1 and not all(tokens):
        sys.exit("TICKETSVC_TOKENS must be tokens separated by single commas, with none empty")
    log_level = environ.get("TICKETSVC_LOG_LEVEL", "").lower() or "info"
    if log_level not in LOG_LEVELS:
        sys.exit(f"TICKETSVC_LOG_LEVEL must be one of {', '.join(LOG_LEVELS)}")
    return {
        "DATABASE_URL": environ.get("DATABASE_URL") or "sqlite:///tickets.db",
        "LOG_LEVEL": log_level,
        "MISSING_STATUS": int(missing_status),
        "TOKENS": [token.encode("utf-8", "surrogateescape") for token in tokens if token],
    }


def add_request_id(record):
    """Give a log record the id of the request it is about."""
    record.request_id = g.get("request_id", "-") if has_request_context() else "-"
    return True


def create_app(environ=os.environ):
    """Return the WSGI application set up by `environ`, its database ready to be used."""
    app = Flask(__name__, static_folder=None)
    app.config.update(read_settings(environ))
    app.logger.setLevel(app.config["LOG_LEVEL"].upper())
    app.logger.addFilter(add_request_id)
    default_handler.setFormatter(logging.Formatter(LOG_FORMAT, "%Y-%m-%d %H:%M:%S %z"))
    if "DYNO" in environ and app.config["DATABASE_URL"].startswith("sqlite"):
        app.logger.warning(
            "DATABASE_URL: a file on the disk of a dyno does not outlive its restart"
        )
    try:
        models.prepare(app.config["DATABASE_URL"])
    except ValueError as error:
        sys.exit(f"DATABASE_URL: {error}")
    app.response_class = JSONResponse
    app.url_map.merge_slashes = False
    app.url_map.converters["int"] = TicketIdConverter
    app.register_blueprint(bp)
    # On the app, because an error of routing belongs to no blueprint.
    app.register_error_handler(HTTPException, handle_http_error)
    app.register_error_handler(ValidationError, handle_validation_error)
    app.register_error_handler(Exception, handle_failure)
    return app
