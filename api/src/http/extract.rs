//! What comes in: strict JSON bodies, strict queries, pages.

use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::header;
use axum::http::request::Parts;
use futures::StreamExt;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::problem::{Code, Problem};

/// A body beyond this is refused.
const BODY_BYTES_MAX: usize = 1 << 20;
/// This much of a body that is refused is still read.
const DISCARDED_BYTES_MAX: usize = 16 << 20;

const PAGE_ITEMS: usize = 100;
const PAGE_ITEMS_MAX: usize = 1000;

/// A JSON body. Unknown fields are errors, so the types it is used with deny them.
pub(crate) struct Body<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let content_type = request.headers().get(header::CONTENT_TYPE);
        let is_json = content_type
            .and_then(|value| value.to_str().ok())
            .is_some_and(|text| {
                let essence = text.split(';').next().unwrap_or_default().trim();
                essence.eq_ignore_ascii_case("application/json")
            });
        if !is_json {
            return Err(Problem::new(Code::UnsupportedMediaType)
                .detail("send the header Content-Type: application/json"));
        }
        let bytes = read(request.into_body()).await?;
        parse(&bytes).map(Body)
    }
}

/// The whole body, if it is not too large.
///
/// Of one that is, some more is read and thrown away: a client that is still sending when the
/// connection closes would not see why.
async fn read(body: axum::body::Body) -> Result<Vec<u8>, Problem> {
    let mut stream = body.into_data_stream();
    let (mut bytes, mut seen) = (Vec::new(), 0_usize);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk
            .map_err(|_| Problem::new(Code::InvalidJson).detail("the body could not be read"))?;
        seen = seen.saturating_add(chunk.len());
        if seen <= BODY_BYTES_MAX {
            bytes.extend_from_slice(&chunk);
        } else if seen <= DISCARDED_BYTES_MAX {
            bytes = Vec::new();
        } else {
            break;
        }
    }
    match seen {
        0..=BODY_BYTES_MAX => Ok(bytes),
        _ => Err(Problem::new(Code::BodyTooLarge)),
    }
}

/// Parse strictly; the problem names the field and says what is wrong without quoting a value.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let inner = error.inner();
        let mut path = error.path().to_string();
        // For a field that is missing the path ends at what it is missing from.
        if let Some(missing) = inner.to_string().strip_prefix("missing field `") {
            let name = missing.split('`').next().unwrap_or_default();
            path = match path.as_str() {
                "." => name.to_owned(),
                outer => format!("{outer}.{name}"),
            };
        }
        let problem = from_json(inner);
        match path.as_str() {
            "." | "?" => problem,
            _ => problem.with("field", path),
        }
    })?;
    deserializer.end().map_err(|error| from_json(&error))?;
    Ok(value)
}

fn from_json(error: &serde_json::Error) -> Problem {
    use serde_json::error::Category;
    match error.classify() {
        Category::Io | Category::Syntax | Category::Eof => {
            Problem::new(Code::InvalidJson).detail(format!(
                "the body is no JSON at line {}, column {}",
                error.line(),
                error.column()
            ))
        }
        Category::Data => {
            let text = without_values(&error.to_string());
            let code = match () {
                () if text.starts_with("unknown field") => Code::UnknownField,
                () if text.starts_with("missing field") => Code::MissingField,
                () => Code::InvalidValue,
            };
            Problem::new(code).detail(text)
        }
    }
}

/// serde quotes the offending value, which may be a secret in the wrong place.
fn without_values(text: &str) -> String {
    let text = text
        .rsplit_once(" at line ")
        .map_or(text, |(before, _)| before);
    match text.find("string \"").zip(text.rfind("\", expected")) {
        Some((open, close)) if open < close => {
            format!("{}string{}", &text[..open], &text[close + 1..])
        }
        Some(_) | None => text.to_owned(),
    }
}

/// The query of a request, strict.
pub(crate) struct Params<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Query::<T>::try_from_uri(&parts.uri)
            .map(|Query(value)| Params(value))
            .map_err(|error| {
                let cause = std::error::Error::source(&error);
                let text = cause.map_or_else(|| error.to_string(), ToString::to_string);
                Problem::new(Code::InvalidQuery).detail(text)
            })
    }
}

/// Which part of a list is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageQuery {
    /// How many items at most; 100 if absent, 1000 at most.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The `next` of the page before.
    after: Option<String>,
}

impl PageQuery {
    /// How many items to read: one more than wanted tells whether there is a next page.
    pub(crate) fn limit(&self) -> Result<usize, Problem> {
        let limit = self.limit.unwrap_or(PAGE_ITEMS);
        match (1..=PAGE_ITEMS_MAX).contains(&limit) {
            true => Ok(limit),
            false => Err(Problem::field(
                Code::InvalidQuery,
                "limit",
                format!("limit is from 1 to {PAGE_ITEMS_MAX}"),
            )),
        }
    }

    pub(crate) fn after(&self) -> Option<&str> {
        self.after.as_deref()
    }

    /// `after` as two parts, for lists ordered by two values.
    pub(crate) fn after_pair<A: std::str::FromStr, B: std::str::FromStr>(
        &self,
    ) -> Result<Option<(A, B)>, Problem> {
        let Some(after) = self.after() else {
            return Ok(None);
        };
        after
            .split_once('~')
            .and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)))
            .map(Some)
            .ok_or_else(bad_cursor)
    }
}

pub(crate) fn bad_cursor() -> Problem {
    Problem::field(
        Code::InvalidQuery,
        "after",
        "after must be the \"next\" of an earlier page",
    )
}

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Page<T> {
    pub(crate) items: Vec<T>,
    /// What to give as `after` for the next page; null on the last one.
    #[schema(required)]
    pub(crate) next: Option<String>,
}

impl<T> Page<T> {
    /// From up to `limit + 1` rows; `cursor` names a row.
    pub(crate) fn cut<R>(
        mut rows: Vec<R>,
        limit: usize,
        cursor: impl Fn(&R) -> String,
        item: impl FnMut(R) -> T,
    ) -> Self {
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next = rows.last().filter(|_| more).map(cursor);
        Self {
            items: rows.into_iter().map(item).collect(),
            next,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsed")]
    struct Sample {
        name: String,
        inner: Option<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsed")]
    struct Inner {
        number: u32,
    }

    fn check(body: &str, code: Code, field: Option<&str>) {
        let problem = parse::<Sample>(body.as_bytes()).unwrap_err();
        assert_eq!(problem.code(), code, "{body}");
        let text = format!("{problem:?}");
        assert!(!text.contains("hunter2"), "{text}");
        if let Some(field) = field {
            assert!(text.contains(field), "{text}");
        }
    }

    #[test]
    fn bodies_are_strict() {
        assert!(parse::<Sample>(br#"{"name":"x","inner":{"number":1}}"#).is_ok());
        check("", Code::InvalidJson, None);
        check("{", Code::InvalidJson, None);
        check(r#"{"name":"x"} {}"#, Code::InvalidJson, None);
        check("{}", Code::MissingField, Some("\"name\""));
        let inner = r#"{"name":"x","inner":{}}"#;
        check(inner, Code::MissingField, Some("inner.number"));
        check(r#"{"name":1}"#, Code::InvalidValue, Some("name"));
        check(r#"{"name":"x","nmae":1}"#, Code::UnknownField, Some("nmae"));
        let nested = r#"{"name":"x","inner":{"number":"pw=hunter2\", expected"}}"#;
        check(nested, Code::InvalidValue, Some("inner.number"));
        let secret = r#"{"name":{"password":"hunter2"}}"#;
        check(secret, Code::InvalidValue, Some("name"));
    }

    #[test]
    fn a_page_knows_whether_it_is_the_last() {
        let cut = |rows: Vec<u32>| Page::cut(rows, 2, u32::to_string, |row| row);
        let page = cut(vec![1, 2, 3]);
        assert_eq!((page.items, page.next), (vec![1, 2], Some("2".to_owned())));
        let page = cut(vec![1, 2]);
        assert_eq!((page.items, page.next), (vec![1, 2], None));
    }
}
