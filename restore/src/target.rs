//! Where a restore stops.
//!
//! The words are those of `recovery_target_*`. An inclusive target keeps the transaction it names;
//! an exclusive one stops just before it.

use std::fmt;

use lastgood_proto::{Lsn, PgTimestamp, Xid};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A target and whether what it names is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub kind: TargetKind,
    pub inclusive: bool,
}

/// What is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetKind {
    /// Everything that is durable.
    Latest,
    /// Stop before the first commit, in LSN order, past (exclusive: at or past) this time.
    Time(PgTimestamp),
    /// Keep commits whose record starts at or below (exclusive: below) this position.
    Lsn(Lsn),
    /// The transaction with this id.
    Xid(Xid),
    /// A named restore point.
    Name(String),
}

/// The text is no target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseTargetError(pub String);

impl Target {
    /// Everything that is durable.
    #[must_use]
    pub const fn latest() -> Self {
        Self {
            kind: TargetKind::Latest,
            inclusive: true,
        }
    }

    #[must_use]
    pub const fn new(kind: TargetKind, inclusive: bool) -> Self {
        Self { kind, inclusive }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            TargetKind::Latest => return f.write_str("latest"),
            TargetKind::Time(time) => write!(f, "time {time}")?,
            TargetKind::Lsn(lsn) => write!(f, "LSN {lsn}")?,
            TargetKind::Xid(xid) => write!(f, "transaction {xid}")?,
            TargetKind::Name(name) => write!(f, "restore point \"{name}\"")?,
        }
        if self.inclusive {
            Ok(())
        } else {
            f.write_str(", exclusive")
        }
    }
}

/// The JSON object form; every field is optional here so that the error can say what is wrong.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    time: Option<PgTimestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lsn: Option<Lsn>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    xid: Option<Xid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(default = "yes")]
    inclusive: bool,
}

const fn yes() -> bool {
    true
}

impl TryFrom<Wire> for Target {
    type Error = ParseTargetError;

    fn try_from(wire: Wire) -> Result<Self, Self::Error> {
        let Wire {
            time,
            lsn,
            xid,
            name,
            inclusive,
        } = wire;
        let kinds = [
            time.map(TargetKind::Time),
            lsn.map(TargetKind::Lsn),
            xid.map(TargetKind::Xid),
            name.map(TargetKind::Name),
        ];
        let mut named = kinds.into_iter().flatten();
        match (named.next(), named.next()) {
            (Some(kind), None) => Ok(Self { kind, inclusive }),
            _ => Err(ParseTargetError(
                "a target is \"latest\" or names exactly one of time, lsn, xid, name".to_owned(),
            )),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut wire = Wire {
            time: None,
            lsn: None,
            xid: None,
            name: None,
            inclusive: self.inclusive,
        };
        match &self.kind {
            TargetKind::Latest => return serializer.serialize_str("latest"),
            TargetKind::Time(time) => wire.time = Some(*time),
            TargetKind::Lsn(lsn) => wire.lsn = Some(*lsn),
            TargetKind::Xid(xid) => wire.xid = Some(*xid),
            TargetKind::Name(name) => wire.name = Some(name.clone()),
        }
        wire.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Target;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"latest\" or an object with one of time, lsn, xid, name")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Target, E> {
                match text {
                    "latest" => Ok(Target::latest()),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(text), &self)),
                }
            }

            fn visit_map<M: serde::de::MapAccess<'de>>(self, map: M) -> Result<Target, M::Error> {
                let wire = Wire::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Target::try_from(wire).map_err(M::Error::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &Target) {
        let target: Target = serde_json::from_str(text).unwrap();
        assert_eq!(&target, expect, "{text}");
        let again = serde_json::to_string(&target).unwrap();
        assert_eq!(
            &serde_json::from_str::<Target>(&again).unwrap(),
            expect,
            "{again}"
        );
    }

    #[test]
    fn json_form() {
        check("\"latest\"", &Target::latest());
        check(
            r#"{"time":"2026-11-20T20:01:02.5Z"}"#,
            &Target::new(
                TargetKind::Time("2026-11-20T20:01:02.5Z".parse().unwrap()),
                true,
            ),
        );
        check(
            r#"{"lsn":"0/16B3748","inclusive":false}"#,
            &Target::new(TargetKind::Lsn(Lsn::new(0x16B_3748)), false),
        );
        check(
            r#"{"xid":742,"inclusive":true}"#,
            &Target::new(TargetKind::Xid(Xid::new(742)), true),
        );
        check(
            r#"{"name":"before-migration"}"#,
            &Target::new(TargetKind::Name("before-migration".to_owned()), true),
        );
    }

    #[test]
    fn refuses_what_is_no_target() {
        for text in [
            "\"newest\"",
            "{}",
            "7",
            "null",
            r#"{"inclusive":false}"#,
            r#"{"lsn":"0/1","xid":7}"#,
            r#"{"lsn":"x"}"#,
            r#"{"time":"2026-11-20 20:00"}"#,
            r#"{"xid":-1}"#,
            r#"{"lsn":"0/1","extra":1}"#,
        ] {
            assert!(serde_json::from_str::<Target>(text).is_err(), "{text}");
        }
    }
}
