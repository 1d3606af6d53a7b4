ALTER TABLE ledger.entry DETACH PARTITION ledger.entry_2029;
DROP TABLE ledger.entry_2028;
ALTER TABLE ledger.account RENAME TO accounts;
ALTER TABLE ledger.accounts SET SCHEMA public;
DROP MATERIALIZED VIEW ledger.total;
