//! Results of the simple query protocol, all text.

use bytes::Bytes;
use lastgood_proto::cursor::Cursor;

use crate::error::Error;

/// A row of text values, found by column name: servers add columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimpleRow {
    values: Vec<(String, Option<String>)>,
}

impl SimpleRow {
    /// The value; `None` if it is NULL or there is no such column.
    #[must_use]
    pub fn get(&self, column: &str) -> Option<&str> {
        self.values
            .iter()
            .find(|(name, _)| name == column)
            .and_then(|(_, value)| value.as_deref())
    }

    /// The value in a column by position.
    #[must_use]
    pub fn at(&self, index: usize) -> Option<&str> {
        self.values
            .get(index)
            .and_then(|(_, value)| value.as_deref())
    }
}

/// RowDescription: only the names matter, every value is text here.
pub(super) fn column_names(body: &Bytes) -> Result<Vec<String>, Error> {
    let mut cursor = Cursor::new(body);
    (0..cursor.u16()?)
        .map(|_| {
            let name = String::from_utf8_lossy(cursor.cstr()?).into_owned();
            // Table, column, type, length, modifier, format.
            cursor.bytes(4 + 2 + 4 + 2 + 4 + 2)?;
            Ok(name)
        })
        .collect()
}

pub(super) fn data_row(columns: &[String], body: &Bytes) -> Result<SimpleRow, Error> {
    let mut cursor = Cursor::new(body);
    let count = usize::from(cursor.u16()?);
    if count != columns.len() {
        return Err(Error::Protocol(
            "a row does not fit its description".to_owned(),
        ));
    }
    let values = columns
        .iter()
        .map(|name| {
            let value = match usize::try_from(cursor.i32()?) {
                Ok(length) => Some(String::from_utf8_lossy(cursor.bytes(length)?).into_owned()),
                Err(_) => None,
            };
            Ok((name.clone(), value))
        })
        .collect::<Result<_, Error>>()?;
    cursor.finish()?;
    Ok(SimpleRow { values })
}
