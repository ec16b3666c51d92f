"""What a request may contain and what an answer shows."""

import re

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validates_schema
from marshmallow.validate import Length, OneOf, Range

from models import (
    CATEGORY_MAX,
    DESCRIPTION_MAX,
    ID_MAX,
    RESPONSE_MAX,
    STATUSES,
    Cursor,
)

CURSOR = re.compile("([0-9]{1,19})-([0-9]{1,19})")
UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def check_storable(value):
    """Refuse a string that some database cannot hold, or that says nothing."""
    if UNSTORABLE.search(value):
        raise ValidationError("May not contain NUL or unpaired surrogates.")
    if value.isspace():
        raise ValidationError("May not be white space only.")


def text(maximum, **options):
    return fields.String(validate=[Length(1, maximum), check_storable], **options)


class JSONNumber(fields.Float):
    """A JSON number; Float itself also takes strings and booleans."""

    def _deserialize(self, value, attr, data, **kwargs):
        if type(value) not in (int, float):
            raise self.make_error("invalid")
        return super()._deserialize(value, attr, data, **kwargs)


class DecimalInteger(fields.Integer):
    """A query parameter of ASCII digits; Integer also takes "+1", " 1" and "1_0"."""

    def _deserialize(self, value, attr, data, **kwargs):
        if not isinstance(value, str) or not re.fullmatch("[0-9]{1,19}", value):
            raise self.make_error("invalid")
        return super()._deserialize(value, attr, data, **kwargs)


class TicketPatchSchema(Schema):
    """The fields a person may correct; null clears one (RFC 7396)."""

    class Meta:
        unknown = EXCLUDE

    category = text(CATEGORY_MAX, allow_none=True)
    ai_suggested_response = text(RESPONSE_MAX, allow_none=True)
    status = fields.String(validate=OneOf(STATUSES))


class TicketSchema(Schema):
    """A whole ticket, in the published order of its fields."""

    class Meta:
        unknown = EXCLUDE

    id = fields.Integer(dump_only=True)
    user_description = text(DESCRIPTION_MAX, required=True)
    category = text(CATEGORY_MAX, allow_none=True)
    ai_suggested_response = text(RESPONSE_MAX, allow_none=True)
    confidence_score = JSONNumber(
        validate=Range(0, 1), allow_nan=False, allow_none=True
    )
    status = fields.String(dump_only=True, validate=OneOf(STATUSES))
    created_at = fields.String(dump_only=True)
    updated_at = fields.String(dump_only=True)


class VersionSchema(Schema):
    """What a ticket was from `updated_at` on, and who wrote it."""

    version = fields.Integer()
    status = fields.String()
    category = fields.String()
    ai_suggested_response = fields.String()
    updated_at = fields.String()
    updated_by = fields.String()


class FiledSchema(Schema):
    """What the classifier said of a ticket."""

    category = fields.String()
    ai_suggested_response = fields.String()


class ChangedTicketSchema(TicketSchema):
    """A ticket as a follower gets it."""

    version = fields.Integer()
    updated_by = fields.String()
    filed = fields.Nested(FiledSchema)


class DeletedTicketSchema(Schema):
    """A ticket that is gone."""

    id = fields.Integer()
    deleted = fields.Boolean()


class PageQuerySchema(Schema):
    """The query of a page; a parameter that does not exist is an error."""

    limit = DecimalInteger(validate=Range(1, 1000), load_default=100)
    before = DecimalInteger(validate=Range(1, ID_MAX))


class CursorField(fields.Field):
    """A cursor, as the feed's links have it: two integers with a hyphen."""

    def _deserialize(self, value, attr, data, **kwargs):
        found = CURSOR.fullmatch(value) if isinstance(value, str) else None
        if found is None:
            raise ValidationError("Not a valid cursor.")
        cursor = Cursor(ticket_id=int(found[1]), version_id=int(found[2]))
        if max(cursor.ticket_id, cursor.version_id) > ID_MAX:
            raise ValidationError("Not a valid cursor.")
        return cursor


class ChangeQuerySchema(Schema):
    """The query of a page of the feed."""

    since = CursorField()
    limit = DecimalInteger(validate=Range(1, 1000), load_default=100)


class TicketQuerySchema(PageQuerySchema):
    """The query of a page of the list."""

    status = fields.String(validate=OneOf(STATUSES))
    after = DecimalInteger(validate=Range(0, ID_MAX))

    @validates_schema
    def refuse_both(self, data, **kwargs):
        if "before" in data and "after" in data:
            raise ValidationError("May not be sent together with before.", "after")


ticket_schema = TicketSchema()
ticket_patch_schema = TicketPatchSchema(partial=True)
ticket_query_schema = TicketQuerySchema()
version_schema = VersionSchema()
changed_ticket_schema = ChangedTicketSchema()
deleted_ticket_schema = DeletedTicketSchema()
change_query_schema = ChangeQuerySchema()
page_query_schema = PageQuerySchema()
