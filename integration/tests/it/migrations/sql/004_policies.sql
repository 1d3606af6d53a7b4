ALTER TABLE ledger.account ENABLE ROW LEVEL SECURITY;
CREATE POLICY everybody ON ledger.account USING (true);
CREATE DOMAIN ledger.amount AS numeric CHECK (VALUE > -1000000);
ALTER TABLE ledger.entry ALTER amount TYPE ledger.amount;
CREATE MATERIALIZED VIEW ledger.total AS SELECT account, sum(amount) AS amount FROM ledger.entry GROUP BY account;
