//! Which codes of which encodings come back from UTF-8, asked of the server for every one of them.

use anyhow::{Context, Result, ensure};
use lastgood_integration::TestDatabase;
use lastgood_proto::encoding::{decode, encode, sent_in};

/// The code's text in UTF-8 if it comes back from there as it was, nothing if not, null if it is no
/// code of one character.
const UTF8: &str = "
CREATE FUNCTION pg_temp.utf8(code bytea) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
    own name := getdatabaseencoding();
    utf8 bytea;
BEGIN
    IF length(convert_from(code, own)) <> 1 THEN RETURN NULL; END IF;
    BEGIN
        utf8 := convert_to(convert_from(code, own), 'UTF8');
        IF convert_to(convert_from(utf8, 'UTF8'), own) = code THEN RETURN utf8; END IF;
    EXCEPTION WHEN untranslatable_character THEN
    END;
    RETURN '';
EXCEPTION WHEN character_not_in_repertoire THEN RETURN NULL;
END $$";

/// All bytes above ASCII, and what may begin with them (`pg_euc_mblen` and its like).
const CODES: &str = "
WITH byte AS (SELECT set_byte('\\x00', 0, n) AS b, n FROM generate_series(128, 255) n),
     euc AS (SELECT * FROM byte WHERE getdatabaseencoding() LIKE 'EUC%'),
     code AS (
         SELECT b AS code FROM byte
         UNION ALL SELECT one.b || two.b FROM euc one, euc two
         UNION ALL SELECT one.b || two.b || three.b FROM euc one, euc two, euc three
                   WHERE one.n IN (142, 143)
         UNION ALL SELECT one.b || two.b || three.b || four.b FROM euc one, euc two, euc three, euc four
                   WHERE getdatabaseencoding() = 'EUC_TW' AND one.n = 142
                     AND two.n BETWEEN 160 AND 178 AND three.n > 160 AND four.n > 160)
SELECT * FROM (SELECT code, pg_temp.utf8(code) FROM code OFFSET 0) answers (code, utf8)
WHERE utf8 IS NOT NULL";

/// All that a database may be in, but those that have nothing to do with UTF-8.
const ENCODINGS: &str = "
SELECT pg_encoding_to_char(n)::text FROM generate_series(0, 34) n
WHERE pg_encoding_to_char(n) NOT IN ('UTF8', 'SQL_ASCII', 'MULE_INTERNAL')";

#[tokio::test(flavor = "multi_thread")]
async fn every_code_of_every_encoding() -> Result<()> {
    for major in [13, 18] {
        let database = TestDatabase::new(major).await?;
        let client = database.connect().await?;
        let encodings = client.query(ENCODINGS, &[]).await?;
        ensure!(encodings.len() == 32, "{} encodings", encodings.len());
        for row in encodings {
            let encoding: String = row.get(0);
            let asked = ask(&database, &encoding).await;
            asked.with_context(|| format!("PostgreSQL {major}, {encoding}"))?;
        }
    }
    Ok(())
}

async fn ask(database: &TestDatabase, encoding: &str) -> Result<()> {
    let name = format!("{}_{}", database.name, encoding.to_lowercase());
    let sql = format!(
        "CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"
    );
    database.server.execute("postgres", &sql).await?;
    let client = database.server.connect(&name).await?;
    client.batch_execute(UTF8).await?;
    let codes = client.query(CODES, &[]).await?;
    ensure!(codes.len() >= 128, "{} codes", codes.len());
    let mut one_to_one = true;
    for row in codes {
        let (code, utf8): (&[u8], &[u8]) = (row.get(0), row.get(1));
        one_to_one &= !utf8.is_empty();
        if sent_in(encoding) == "UTF8" {
            continue;
        }
        let text = decode(encoding, code);
        let back = encode(encoding, &text);
        match utf8.is_empty() {
            true => ensure!(back.as_deref() != Some(code), "{code:x?} as {text}"),
            false => ensure!(
                text.as_bytes() == utf8 && back.as_deref() == Some(code),
                "{code:x?} as {text}"
            ),
        }
    }
    ensure!(one_to_one == (sent_in(encoding) == "UTF8"));
    Ok(())
}
