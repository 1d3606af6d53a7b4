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
            let value = match cursor.i32()? {
                -1 => None,
                length => {
                    let length = usize::try_from(length)
                        .map_err(|_| Error::Protocol("a value of negative length".to_owned()))?;
                    Some(String::from_utf8_lossy(cursor.bytes(length)?).into_owned())
                }
            };
            Ok((name.clone(), value))
        })
        .collect::<Result<_, Error>>()?;
    cursor.finish()?;
    Ok(SimpleRow { values })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::error::ServerError;

    #[test]
    fn a_result() {
        let description = b"\0\x02a\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0b\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0";
        let columns = column_names(&Bytes::from_static(description)).unwrap();
        assert_eq!(columns, ["a", "b"]);
        let row = Bytes::from_static(b"\0\x02\0\0\0\x02hi\xff\xff\xff\xff");
        let row = data_row(&columns, &row).unwrap();
        assert_eq!(
            (row.get("a"), row.get("b"), row.get("c")),
            (Some("hi"), None, None)
        );
        assert_eq!((row.at(0), row.at(1), row.at(2)), (Some("hi"), None, None));
        for broken in [
            &b"\0\x02\0\0\0\x02hi"[..],
            b"\0\x01\0\0\0\0",
            b"\0\x02\0\0\0\0\xff\xff\xff\xfe",
        ] {
            assert!(data_row(&columns, &Bytes::copy_from_slice(broken)).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_panic(bytes: Vec<u8>) {
            let body = Bytes::from(bytes);
            let _ = column_names(&body);
            let _ = data_row(&["a".to_owned()], &body);
            let _ = ServerError::parse(&body);
        }
    }
}
