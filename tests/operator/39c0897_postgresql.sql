-- What commit 39c0897 stored of three POSTs and three PATCHes; ticket 3 was deleted by hand.
CREATE FUNCTION ticket_version_kept() RETURNS trigger
    LANGUAGE plpgsql
    AS $$ BEGIN INSERT INTO ticket_version (ticket_id, version, status, category, ai_suggested_response, updated_at, updated_by) VALUES (OLD.id, OLD.version, OLD.status, OLD.category, OLD.ai_suggested_response, OLD.updated_at, OLD.updated_by); IF NEW.version = OLD.version THEN NEW.version := OLD.version + 1; NEW.updated_at := to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'); NEW.updated_by := NULL; END IF; RETURN NEW; END $$;
CREATE TABLE ticket (
    id bigint NOT NULL,
    user_description text NOT NULL,
    category text,
    ai_suggested_response text,
    confidence_score double precision,
    status text NOT NULL,
    created_at text DEFAULT to_char((now() AT TIME ZONE 'UTC'::text), 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'::text) NOT NULL,
    updated_at text DEFAULT to_char((now() AT TIME ZONE 'UTC'::text), 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'::text) NOT NULL,
    version bigint DEFAULT 1 NOT NULL,
    updated_by text,
    idempotency_key text,
    CONSTRAINT ticket_ai_suggested_response_check CHECK (((length(ai_suggested_response) >= 1) AND (length(ai_suggested_response) <= 50000))),
    CONSTRAINT ticket_category_check CHECK (((length(category) >= 1) AND (length(category) <= 100))),
    CONSTRAINT ticket_confidence_score_check CHECK (((confidence_score >= (0)::double precision) AND (confidence_score <= (1)::double precision))),
    CONSTRAINT ticket_created_at_check CHECK ((created_at ~~ '____-__-__T__:__:__.___Z'::text)),
    CONSTRAINT ticket_status_check CHECK ((status = ANY (ARRAY['ai_resolved'::text, 'pending_agent'::text, 'closed'::text]))),
    CONSTRAINT ticket_updated_at_check CHECK ((updated_at ~~ '____-__-__T__:__:__.___Z'::text)),
    CONSTRAINT ticket_user_description_check CHECK (((length(user_description) >= 1) AND (length(user_description) <= 10000))),
    CONSTRAINT ticket_version_check CHECK ((version > 0))
);
CREATE SEQUENCE ticket_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE ticket_id_seq OWNED BY ticket.id;
CREATE TABLE ticket_version (
    id bigint NOT NULL,
    ticket_id bigint NOT NULL,
    version bigint NOT NULL,
    status text NOT NULL,
    category text,
    ai_suggested_response text,
    updated_at text NOT NULL,
    updated_by text
);
CREATE SEQUENCE ticket_version_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE ticket_version_id_seq OWNED BY ticket_version.id;
ALTER TABLE ONLY ticket ALTER COLUMN id SET DEFAULT nextval('ticket_id_seq'::regclass);
ALTER TABLE ONLY ticket_version ALTER COLUMN id SET DEFAULT nextval('ticket_version_id_seq'::regclass);
INSERT INTO ticket VALUES (1, 'Größe der Rechnung ist falsch – 12 € zu viel', 'Überweisung', 'Bitte prüfen Sie „Konto“.', 0.93, 'closed', '2026-11-29T15:44:05.586Z', '2026-11-29T15:44:05.652Z', 3, 'alice', NULL);
INSERT INTO ticket VALUES (2, 'ログインできません 🙈', 'it''s', NULL, NULL, 'pending_agent', '2026-11-29T15:44:05.603Z', '2026-11-29T15:44:05.665Z', 2, 'alice', 'mail-1');
INSERT INTO ticket_version VALUES (1, 1, 1, 'ai_resolved', 'billing', 'Bitte prüfen Sie „Konto“.', '2026-11-29T15:44:05.586Z', 'alice');
INSERT INTO ticket_version VALUES (2, 1, 2, 'ai_resolved', 'Überweisung', 'Bitte prüfen Sie „Konto“.', '2026-11-29T15:44:05.630Z', 'alice');
INSERT INTO ticket_version VALUES (3, 2, 1, 'pending_agent', NULL, NULL, '2026-11-29T15:44:05.603Z', 'alice');
SELECT pg_catalog.setval('ticket_id_seq', 3, true);
SELECT pg_catalog.setval('ticket_version_id_seq', 3, true);
ALTER TABLE ONLY ticket
    ADD CONSTRAINT ticket_pkey PRIMARY KEY (id);
ALTER TABLE ONLY ticket_version
    ADD CONSTRAINT ticket_version_pkey PRIMARY KEY (id);
CREATE UNIQUE INDEX ticket_idempotency_key ON ticket USING btree (idempotency_key);
CREATE INDEX ticket_status_id ON ticket USING btree (status, id);
CREATE INDEX ticketversion_ticket_id_version ON ticket_version USING btree (ticket_id, version);
CREATE TRIGGER ticket_version_kept BEFORE UPDATE OF user_description, category, ai_suggested_response, confidence_score, status, created_at ON ticket FOR EACH ROW EXECUTE FUNCTION ticket_version_kept();
