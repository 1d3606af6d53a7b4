//! Foreign keys between tables of which some are only as fresh as the base: where the rows do not
//! satisfy one, it is created NOT VALID, so that it holds for everything new, and reported.

use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::Error;
use crate::sql::ends_statement;

/// Creates foreign keys, of which each statement is one.
pub(crate) async fn create(
    client: &Client,
    statements: impl IntoIterator<Item = String>,
) -> Result<Vec<String>, Error> {
    let mut notes = Vec::new();
    for statement in statements {
        let Err(error) = client.batch_execute(&statement).await else {
            continue;
        };
        if error.code() != Some(&SqlState::FOREIGN_KEY_VIOLATION) {
            return Err(Error::Statement {
                statement,
                source: error,
            });
        }
        let lenient = format!("{} NOT VALID;", statement.trim_end_matches(';'));
        let detail = error.as_db_error().and_then(|error| error.detail());
        let detail = detail
            .unwrap_or("rows of a table that is as fresh as the base")
            .to_owned();
        match client.batch_execute(&lenient).await {
            Ok(()) => notes.push(format!("created NOT VALID: {statement} ({detail})")),
            // Not before 18 on a partitioned table.
            Err(error) if error.code() == Some(&SqlState::WRONG_OBJECT_TYPE) => {
                notes.push(format!("not created: {statement} ({detail})"));
            }
            Err(source) => {
                return Err(Error::Statement {
                    statement: lenient,
                    source,
                });
            }
        }
    }
    Ok(notes)
}

/// The foreign keys of a script that has nothing else: from each `ALTER TABLE` to the end that leaves no quote open.
pub(crate) fn statements(script: &str) -> Vec<String> {
    let mut statements = Vec::new();
    let mut statement = String::new();
    for line in script.lines() {
        if statement.is_empty() && !line.starts_with("ALTER TABLE ") {
            continue;
        }
        if !statement.is_empty() {
            statement.push('\n');
        }
        statement.push_str(line);
        if ends_statement(&statement) {
            statements.push(std::mem::take(&mut statement));
        }
    }
    statements
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits() {
        let script = "--\n-- Name: c c_p_fkey; Type: FK CONSTRAINT; Schema: public; Owner: -\n--\n\nALTER TABLE ONLY public.c\n    ADD CONSTRAINT c_p_fkey FOREIGN KEY (p) REFERENCES public.p(id);\n\n\n";
        assert_eq!(
            statements(script),
            [
                "ALTER TABLE ONLY public.c\n    ADD CONSTRAINT c_p_fkey FOREIGN KEY (p) REFERENCES public.p(id);"
            ]
        );
    }
}
