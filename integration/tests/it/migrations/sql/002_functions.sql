CREATE FUNCTION ledger.touch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE ledger.account SET balance = balance + new.amount WHERE id = new.account; -- ; not the end
    RETURN new;
END $$;
CREATE TRIGGER touch AFTER INSERT ON ledger.entry FOR EACH ROW EXECUTE FUNCTION ledger.touch();
INSERT INTO ledger.entry (account, at, amount) SELECT id, '2026-05-01', 5 FROM ledger.account;
COMMENT ON TABLE ledger.account IS 'who owns what';
