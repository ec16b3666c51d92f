-- What commit 0672aee stored of five POSTs and four PATCHes; ticket 5 was deleted by hand.
PRAGMA journal_mode = wal;
BEGIN;
CREATE TABLE IF NOT EXISTS "ticket" ("id" INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, "user_description" TEXT NOT NULL CHECK (length(user_description) BETWEEN 1 AND 10000), "category" TEXT CHECK (length(category) BETWEEN 1 AND 100), "ai_suggested_response" TEXT CHECK (length(ai_suggested_response) BETWEEN 1 AND 50000), "confidence_score" REAL CHECK (confidence_score BETWEEN 0 AND 1), "status" TEXT NOT NULL CHECK (status IN ('ai_resolved', 'pending_agent', 'closed')), "created_at" TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) CHECK (created_at LIKE '____-__-__T__:__:__.___Z'), "updated_at" TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) CHECK (updated_at LIKE '____-__-__T__:__:__.___Z'), "version" INTEGER NOT NULL DEFAULT 1 CHECK (version > 0)) STRICT;
INSERT INTO ticket VALUES
(1,'Größe der Rechnung ist falsch – 12 € zu viel','billing','Bitte prüfen Sie „Konto“.',0.93000000000000004884,'closed','2026-11-24T10:35:30.916Z','2026-11-24T10:35:30.975Z',2),
(2,replace('It''s broken:\n	нажал «Экспорт», ничего','\n',char(10)),'Überweisung','Попробуйте ещё раз.',0.41999999999999998445,'pending_agent','2026-11-24T10:35:30.929Z','2026-11-24T10:35:31.004Z',4),
(3,'ログインできません 🙈',NULL,NULL,NULL,'pending_agent','2026-11-24T10:35:30.940Z','2026-11-24T10:35:30.940Z',1),
(4,'100 % of \ and " kept','other','OK',0.69999999999999995559,'ai_resolved','2026-11-24T10:35:30.952Z','2026-11-24T10:35:30.952Z',1);
DELETE FROM sqlite_sequence;
INSERT INTO sqlite_sequence VALUES('ticket',5);
CREATE INDEX "ticket_status_id" ON "ticket" ("status", "id");
COMMIT;
