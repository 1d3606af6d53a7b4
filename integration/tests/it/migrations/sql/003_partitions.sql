DO $$
BEGIN
    FOR year IN 2027..2029 LOOP
        EXECUTE format('CREATE TABLE ledger.entry_%s PARTITION OF ledger.entry FOR VALUES FROM (%L) TO (%L)',
                       year, year || '-01-01', year + 1 || '-01-01');
    END LOOP;
END $$;
ALTER TABLE ledger.entry ADD note text DEFAULT 'none';
CREATE INDEX ON ledger.entry (account);
