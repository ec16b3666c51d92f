-- What commit 39c0897 stored of three POSTs and three PATCHes; ticket 3 was deleted by hand.
PRAGMA journal_mode = wal;
BEGIN TRANSACTION;
CREATE TABLE IF NOT EXISTS "ticket" ("id" INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, "user_description" TEXT NOT NULL CHECK (length(user_description) BETWEEN 1 AND 10000), "category" TEXT CHECK (length(category) BETWEEN 1 AND 100), "ai_suggested_response" TEXT CHECK (length(ai_suggested_response) BETWEEN 1 AND 50000), "confidence_score" REAL CHECK (confidence_score BETWEEN 0 AND 1), "status" TEXT NOT NULL CHECK (status IN ('ai_resolved', 'pending_agent', 'closed')), "created_at" TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) CHECK (created_at LIKE '____-__-__T__:__:__.___Z'), "updated_at" TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')) CHECK (updated_at LIKE '____-__-__T__:__:__.___Z'), "version" INTEGER NOT NULL DEFAULT 1 CHECK (version > 0), "updated_by" TEXT, "idempotency_key" TEXT) STRICT;
INSERT INTO ticket VALUES(1,'Größe der Rechnung ist falsch – 12 € zu viel','Überweisung','Bitte prüfen Sie „Konto“.',0.93000000000000004884,'closed','2026-11-29T15:44:03.122Z','2026-11-29T15:44:03.204Z',3,'alice',NULL);
INSERT INTO ticket VALUES(2,'ログインできません 🙈','it''s',NULL,NULL,'pending_agent','2026-11-29T15:44:03.148Z','2026-11-29T15:44:03.210Z',2,'alice','mail-1');
CREATE TABLE IF NOT EXISTS "ticket_version" ("id" INTEGER NOT NULL PRIMARY KEY, "ticket_id" INTEGER NOT NULL, "version" INTEGER NOT NULL, "status" TEXT NOT NULL, "category" TEXT, "ai_suggested_response" TEXT, "updated_at" TEXT NOT NULL, "updated_by" TEXT) STRICT;
INSERT INTO ticket_version VALUES(1,1,1,'ai_resolved','billing','Bitte prüfen Sie „Konto“.','2026-11-29T15:44:03.122Z','alice');
INSERT INTO ticket_version VALUES(2,1,2,'ai_resolved','Überweisung','Bitte prüfen Sie „Konto“.','2026-11-29T15:44:03.190Z','alice');
INSERT INTO ticket_version VALUES(3,2,1,'pending_agent',NULL,NULL,'2026-11-29T15:44:03.148Z','alice');
DELETE FROM sqlite_sequence;
INSERT INTO sqlite_sequence VALUES('ticket',3);
CREATE UNIQUE INDEX "ticket_idempotency_key" ON "ticket" ("idempotency_key");
CREATE INDEX "ticket_status_id" ON "ticket" ("status", "id");
CREATE INDEX "ticketversion_ticket_id_version" ON "ticket_version" ("ticket_id", "version");
CREATE TRIGGER ticket_version_kept AFTER UPDATE OF user_description, category, ai_suggested_response, confidence_score, status, created_at ON ticket BEGIN INSERT INTO ticket_version (ticket_id, version, status, category, ai_suggested_response, updated_at, updated_by) VALUES (OLD.id, OLD.version, OLD.status, OLD.category, OLD.ai_suggested_response, OLD.updated_at, OLD.updated_by); UPDATE ticket SET version = OLD.version + 1, updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), updated_by = NULL WHERE id = OLD.id AND NEW.version = OLD.version; END;
COMMIT;
