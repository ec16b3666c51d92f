-- What commit 0672aee stored of five POSTs and four PATCHes; ticket 5 was deleted by hand.
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
    CONSTRAINT ticket_ai_suggested_response_check CHECK (((length(ai_suggested_response) >= 1) AND (length(ai_suggested_response) <= 50000))),
    CONSTRAINT ticket_category_check CHECK (((length(category) >= 1) AND (length(category) <= 100))),
    CONSTRAINT ticket_confidence_score_check CHECK (((confidence_score >= (0)::double precision) AND (confidence_score <= (1)::double precision))),
    CONSTRAINT ticket_created_at_check CHECK ((created_at ~~ '____-__-__T__:__:__.___Z'::text)),
    CONSTRAINT ticket_status_check CHECK ((status = ANY (ARRAY['ai_resolved'::text, 'pending_agent'::text, 'closed'::text]))),
    CONSTRAINT ticket_updated_at_check CHECK ((updated_at ~~ '____-__-__T__:__:__.___Z'::text)),
    CONSTRAINT ticket_user_description_check CHECK (((length(user_description) >= 1) AND (length(user_description) <= 10000))),
    CONSTRAINT ticket_version_check CHECK ((version > 0))
);
CREATE SEQUENCE ticket_id_seq;
ALTER SEQUENCE ticket_id_seq OWNED BY ticket.id;
ALTER TABLE ticket ALTER COLUMN id SET DEFAULT nextval('ticket_id_seq'::regclass);
INSERT INTO ticket VALUES
(3, 'ログインできません 🙈', NULL, NULL, NULL, 'pending_agent', '2026-11-24T10:35:30.940Z', '2026-11-24T10:35:30.940Z', 1),
(4, '100 % of \ and " kept', 'other', 'OK', 0.7, 'ai_resolved', '2026-11-24T10:35:30.952Z', '2026-11-24T10:35:30.952Z', 1),
(1, 'Größe der Rechnung ist falsch – 12 € zu viel', 'billing', 'Bitte prüfen Sie „Konto“.', 0.93, 'closed', '2026-11-24T10:35:30.916Z', '2026-11-24T10:35:30.975Z', 2),
(2, 'It''s broken:
	нажал «Экспорт», ничего', 'Überweisung', 'Попробуйте ещё раз.', 0.42, 'pending_agent', '2026-11-24T10:35:30.929Z', '2026-11-24T10:35:31.004Z', 4);
SELECT setval('ticket_id_seq', 5, true);
ALTER TABLE ticket ADD CONSTRAINT ticket_pkey PRIMARY KEY (id);
CREATE INDEX ticket_status_id ON ticket USING btree (status, id);
