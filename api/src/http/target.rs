//! Where a restore stops, as the API takes it: `"latest"` or an object with one of `time`, `lsn`,
//! `xid`, `name`.

use lastgood_proto::{ParseLsnError, ParseTimeError, Xid};
use lastgood_restore::{Target, TargetKind};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{RefOr, schema};
use utoipa::{PartialSchema, ToSchema};

use super::problem::{Code, Problem};

/// A target as it came; read by [`TargetRequest::read`], so that whatever is wrong with it gets one
/// code of its own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(super) struct TargetRequest(Value);

const SHAPE: &str = "a target is \"latest\" or an object with exactly one of time, lsn, xid, name, \
                     and optionally inclusive";

impl TargetRequest {
    /// # Errors
    /// Not exactly one of the parts, or a part that is no time, LSN or transaction id.
    pub(super) fn read(&self) -> Result<Target, Problem> {
        let bad = |field: &str, detail: String| Problem::field(Code::InvalidTarget, field, detail);
        let object = match &self.0 {
            Value::String(text) if text == "latest" => return Ok(Target::latest()),
            Value::Object(object) => object,
            _ => return Err(bad("target", SHAPE.to_owned())),
        };
        let (mut kinds, mut inclusive) = (Vec::new(), true);
        for (name, value) in object {
            let field = format!("target.{name}");
            let text = || {
                let text = value.as_str().filter(|text| !text.is_empty());
                text.ok_or_else(|| bad(&field, format!("{name} is a text that is not empty")))
            };
            match name.as_str() {
                "time" => kinds.push(TargetKind::Time(
                    text()?
                        .parse()
                        .map_err(|error: ParseTimeError| bad(&field, error.to_string()))?,
                )),
                "lsn" => kinds.push(TargetKind::Lsn(
                    text()?
                        .parse()
                        .map_err(|error: ParseLsnError| bad(&field, error.to_string()))?,
                )),
                "xid" => {
                    let xid = value.as_u64().and_then(|xid| u32::try_from(xid).ok());
                    let xid = xid.ok_or_else(|| {
                        bad(&field, "xid is a number from 0 to 4294967295".to_owned())
                    })?;
                    kinds.push(TargetKind::Xid(Xid::new(xid)));
                }
                "name" => kinds.push(TargetKind::Name(text()?.to_owned())),
                "inclusive" => {
                    inclusive = value
                        .as_bool()
                        .ok_or_else(|| bad(&field, "inclusive is true or false".to_owned()))?;
                }
                _ => return Err(bad(&field, SHAPE.to_owned())),
            }
        }
        match <[TargetKind; 1]>::try_from(kinds) {
            Ok([kind]) => Ok(Target::new(kind, inclusive)),
            Err(_) => Err(bad("target", SHAPE.to_owned())),
        }
    }
}

impl PartialSchema for TargetRequest {
    fn schema() -> RefOr<Schema> {
        let text = |description: &str, example: &str| {
            ObjectBuilder::new()
                .schema_type(SchemaType::new(Type::String))
                .description(Some(description))
                .examples([example])
        };
        let latest = ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::String))
            .enum_values(Some(["latest"]));
        let xid = ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::Integer))
            .minimum(Some(0))
            .maximum(Some(u32::MAX))
            .description(Some("The state after this transaction"));
        let inclusive = ObjectBuilder::new()
            .schema_type(SchemaType::new(Type::Boolean))
            .default(Some(true.into()))
            .description(Some("Whether what is named is kept"));
        let object = ObjectBuilder::new()
            .property(
                "time",
                text("The state at this time", "2026-11-20T20:01:02Z"),
            )
            .property("lsn", text("The state at this LSN", "0/16B3748"))
            .property("xid", xid)
            .property(
                "name",
                text("The state at this restore point", "before-migration"),
            )
            .property("inclusive", inclusive)
            .additional_properties(Some(schema::AdditionalProperties::FreeForm(false)))
            .description(Some("Exactly one of time, lsn, xid and name"));
        OneOfBuilder::new()
            .item(latest)
            .item(object)
            .description(Some("Where a restore stops"))
            .into()
    }
}

impl ToSchema for TargetRequest {
    fn name() -> std::borrow::Cow<'static, str> {
        "Target".into()
    }
}

/// A target as it is answered; the same shape.
#[derive(Debug)]
pub(super) struct TargetView(pub(super) Target);

impl Serialize for TargetView {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl PartialSchema for TargetView {
    fn schema() -> RefOr<Schema> {
        TargetRequest::schema()
    }
}

impl ToSchema for TargetView {
    fn name() -> std::borrow::Cow<'static, str> {
        "Target".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Target, String> {
        let request: TargetRequest =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        request.read().map_err(|problem| format!("{problem:?}"))
    }

    #[test]
    fn targets_are_read() {
        assert_eq!(read("\"latest\""), Ok(Target::latest()));
        let time = "2026-11-20T20:01:02Z".parse().unwrap();
        assert_eq!(
            read(r#"{"time":"2026-11-20T20:01:02Z","inclusive":false}"#),
            Ok(Target::new(TargetKind::Time(time), false))
        );
        let lsn = "0/16B3748".parse().unwrap();
        assert_eq!(
            read(r#"{"lsn":"0/16B3748"}"#),
            Ok(Target::new(TargetKind::Lsn(lsn), true))
        );
        assert_eq!(
            read(r#"{"xid":742}"#),
            Ok(Target::new(TargetKind::Xid(Xid::new(742)), true))
        );
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for text in [
            "\"now\"",
            "{}",
            "5",
            r#"{"time":"yesterday"}"#,
            r#"{"lsn":"16B3748"}"#,
            r#"{"xid":-1}"#,
            r#"{"xid":"742"}"#,
            r#"{"name":""}"#,
            r#"{"lsn":"0/1","inclusive":"no"}"#,
            r#"{"inclusive":true}"#,
            r#"{"lsn":"0/1","name":"x"}"#,
            r#"{"lns":"0/1"}"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
