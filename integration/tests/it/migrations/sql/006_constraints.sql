ALTER TABLE ledger.entry_2026 ADD CONSTRAINT not_huge CHECK (amount < 1000) NOT VALID;
ALTER TABLE accounts ADD CONSTRAINT named CHECK (owner <> '') NOT VALID;
ALTER TABLE accounts VALIDATE CONSTRAINT named;
CREATE TABLE booking (id int PRIMARY KEY, during tstzrange, EXCLUDE USING gist (during WITH &&));
CREATE STATISTICS ledger.owners ON owner, balance FROM accounts;
CREATE VIEW owners AS SELECT owner FROM accounts;
CREATE RULE nobody AS ON INSERT TO owners DO INSTEAD NOTHING;
