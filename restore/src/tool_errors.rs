//! What `pg_restore` reports and yet means no harm, told apart exactly; everything else is an error.
//!
//! It counts the errors it went on after. Only if each of them was read and is one of those below
//! did the run succeed.

use lastgood_pg::ToolError;

use crate::Error;

const ERROR: &str = "pg_restore: error: could not execute query: ERROR:  ";

/// An error that leaves nothing behind but a note, or not even that.
fn harmless(error: &str, command: &str) -> Option<Note> {
    // A pg_restore of 17 or later into a server before 17; the setting is a time limit we have off.
    if error == "unrecognized configuration parameter \"transaction_timeout\"" {
        return Some(Note::None);
    }
    // Every new database has it.
    if error == "schema \"public\" already exists" && command == "CREATE SCHEMA public;" {
        return Some(Note::None);
    }
    // A trusted extension belongs to a superuser although another role may create it.
    if error.starts_with("must be owner of extension ")
        && command.starts_with("COMMENT ON EXTENSION ")
    {
        return Some(Note::Kept(format!("not kept: {command} ({error})")));
    }
    if error.starts_with("permission denied to create event trigger ")
        && command.starts_with("CREATE EVENT TRIGGER ")
    {
        return Some(Note::Kept(format!("not kept: {command} ({error})")));
    }
    None
}

enum Note {
    None,
    Kept(String),
}

/// What is worth telling of a run that succeeded.
pub(crate) fn judge(outcome: Result<String, ToolError>) -> Result<Vec<String>, Error> {
    let (status, stderr) = match outcome {
        Ok(_) => return Ok(Vec::new()),
        Err(ToolError::Failed { status, stderr, .. }) => (status, stderr),
        Err(other) => return Err(other.into()),
    };
    match notes(&stderr) {
        Some(notes) => Ok(notes),
        None => Err(Error::Tool(ToolError::Failed {
            tool: "pg_restore",
            status,
            stderr,
        })),
    }
}

fn notes(stderr: &str) -> Option<Vec<String>> {
    let ignored = stderr
        .lines()
        .find_map(|line| line.strip_prefix("pg_restore: warning: errors ignored on restore: "))?;
    let ignored: usize = ignored.trim().parse().ok()?;
    let (mut notes, mut known) = (Vec::new(), 0);
    let mut lines = stderr.lines().peekable();
    while let Some(line) = lines.next() {
        if !line.starts_with("pg_restore: error:") {
            continue;
        }
        let error = line.strip_prefix(ERROR)?;
        let mut command = "";
        while let Some(next) = lines.peek() {
            if next.starts_with("pg_restore:") {
                break;
            }
            if let Some(text) = next.strip_prefix("Command was: ") {
                command = text;
            }
            lines.next();
        }
        known += 1;
        if let Note::Kept(text) = harmless(error, command)? {
            notes.push(text);
        }
    }
    (known == ignored).then_some(notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(stderr: &str, expect: Option<&[&str]>) {
        let expect = expect.map(|notes| notes.iter().map(|note| (*note).to_owned()).collect());
        assert_eq!(notes(stderr), expect, "{stderr}");
    }

    #[test]
    fn only_what_is_known() {
        let timeout = "pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter \"transaction_timeout\"\nCommand was: SET transaction_timeout = 0;\n";
        let comment = "pg_restore: while PROCESSING TOC:\npg_restore: from TOC entry 2; 0 0 COMMENT EXTENSION citext \npg_restore: error: could not execute query: ERROR:  must be owner of extension citext\nCommand was: COMMENT ON EXTENSION citext IS 'x';\n\n\n";
        let other = "pg_restore: error: could not execute query: ERROR:  relation \"t\" already exists\nCommand was: CREATE TABLE t();\n";
        let count =
            |number: u32| format!("pg_restore: warning: errors ignored on restore: {number}\n");
        check(&format!("{timeout}{}", count(1)), Some(&[]));
        check(
            &format!("{timeout}{comment}{}", count(2)),
            Some(&[
                "not kept: COMMENT ON EXTENSION citext IS 'x'; (must be owner of extension citext)",
            ]),
        );
        check(&format!("{timeout}{other}{}", count(2)), None);
        // Some were cut out of what is kept of stderr.
        check(&format!("{timeout}{}", count(2)), None);
        check(timeout, None);
        check("pg_restore: error: connection failed\n", None);
        let copy = "pg_restore: error: COPY failed for table \"t\": ERROR:  x\n";
        check(&format!("{copy}{}", count(1)), None);
    }
}
