-- A segment that was made of others, whose rows it has taken the place of.
ALTER TABLE segment ADD COLUMN merged INTEGER NOT NULL DEFAULT 0 CHECK (merged IN (0, 1));
