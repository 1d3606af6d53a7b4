//! Both forms against libpq's documented behaviour, and the promise that no password shows.

use proptest::prelude::*;

use super::raw::DEFAULT_SOCKET_FOLDER;
use super::*;

fn check(text: &str, expect: &str) -> ConnectionConfig {
    let config: ConnectionConfig = text.parse().unwrap();
    assert_eq!(config.redacted(), expect, "{text}");
    config
}

fn refuse(text: &str) -> ConfigError {
    text.parse::<ConnectionConfig>().unwrap_err()
}

fn password(config: &ConnectionConfig) -> &str {
    config.password.as_ref().unwrap().expose()
}

#[test]
fn both_forms_mean_the_same() {
    let expect = "postgresql://ann@db.example.org:6432/shop?sslmode=require";
    let url = check(
        "postgres://ann:s%40%2F%3Acret@db.example.org:6432/shop?sslmode=require",
        expect,
    );
    let keywords = check(
        "host=db.example.org port = 6432 user=ann dbname='shop' password='s@/:cret' sslmode=require",
        expect,
    );
    assert_eq!(password(&url), "s@/:cret");
    assert_eq!(password(&keywords), "s@/:cret");
}

#[test]
fn quotes_and_backslashes() {
    let config = check(
        r"user=ann password='it\'s \\ a = b' host=h",
        "postgresql://ann@h:5432/ann?sslmode=prefer",
    );
    assert_eq!(password(&config), r"it's \ a = b");
    let config: ConnectionConfig = r"user=a\ b password=c\ d".parse().unwrap();
    assert_eq!(config.user(), "a b");
    assert_eq!(password(&config), "c d");
    assert_eq!(config.host(), DEFAULT_SOCKET_FOLDER);
}

#[test]
fn urls() {
    check(
        "postgresql://u@[::1]:5433,h2,h3:7000/db",
        "postgresql://u@[::1]:5433,h2:5432,h3:7000/db?sslmode=prefer",
    );
    check(
        "postgresql://%2Ftmp%2Fsock/db?user=u",
        "postgresql://u@%2Ftmp%2Fsock:5432/db?sslmode=prefer",
    );
    check(
        "postgresql:///db?user=u&host=h&port=5433&ssl=true",
        "postgresql://u@h:5433/db?sslmode=require",
    );
    check(
        "postgresql://u@h?application_name=a%20b",
        "postgresql://u@h:5432/u?sslmode=prefer",
    );
    // As libpq: a question mark in the password needs no encoding.
    assert_eq!(
        password(&check(
            "postgres://u:p?w@h/d",
            "postgresql://u@h:5432/d?sslmode=prefer"
        )),
        "p?w"
    );
}

#[test]
fn hosts_and_addresses() {
    let config: ConnectionConfig = "user=u host=a,b hostaddr=10.0.0.1,10.0.0.2 port=5433"
        .parse()
        .unwrap();
    assert_eq!(config.hosts().len(), 2);
    assert_eq!(config.hosts()[1].to_string(), "b:5433");
    assert_eq!(config.pinned_to(&config.hosts()[1]).host(), "b");
    assert_eq!(refuse("user=u host=a,b port=1,2,3"), ConfigError::HostCount);
    assert_eq!(refuse("user=u host=a port=0"), ConfigError::Port);
    assert_eq!(refuse("user=u host=a port=65536"), ConfigError::Port);
}

#[test]
fn what_is_asked_for_and_cannot_be_given_is_refused() {
    assert_eq!(refuse("host=h"), ConfigError::MissingUser);
    assert_eq!(refuse("user=u host"), ConfigError::MissingEquals);
    assert_eq!(refuse("user='u"), ConfigError::UnterminatedQuote);
    assert_eq!(refuse("postgres://u%zz@h"), ConfigError::PercentEncoding);
    assert_eq!(refuse("postgres://u@h/%00"), ConfigError::ZeroByte);
    assert_eq!(
        refuse("postgres://u@h/d?pgbouncer=true").to_string(),
        "the parameter \"pgbouncer\" is not known"
    );
    assert_eq!(
        refuse("postgres://u@h/d?pgbouncer=").to_string(),
        "the parameter \"pgbouncer\" is not known"
    );
    for (text, name) in [
        ("user=u passfile=/x", "passfile"),
        ("user=u service=x", "service"),
        ("user=u sslcrl=x", "sslcrl"),
        ("user=u gssencmode=require", "gssencmode"),
        ("user=u client_encoding=LATIN1", "client_encoding"),
    ] {
        assert!(
            matches!(refuse(text), ConfigError::Unsupported { name: n, .. } if n == name),
            "{text}"
        );
    }
    assert_eq!(
        refuse("user=u sslmode=verify-ca"),
        ConfigError::RootsMissing { mode: "verify-ca" }
    );
    assert_eq!(
        refuse("user=u sslmode=require sslrootcert=system"),
        ConfigError::WeakWithSystemRoots { mode: "require" }
    );
    assert_eq!(
        refuse("user=u sslmode=prefer sslnegotiation=direct"),
        ConfigError::WeakWithDirect
    );
    assert_eq!(
        refuse("user=u sslcert=x"),
        ConfigError::HalfAClientCertificate
    );
    let system: ConnectionConfig = "user=u sslrootcert=system".parse().unwrap();
    assert_eq!(system.ssl_mode(), SslMode::VerifyFull);
}

#[test]
fn a_password_that_was_not_encoded_does_not_show() {
    // Each is a common mistake; libpq's messages would repeat a part of the password.
    for text in [
        "postgres://u:hunter@2hunter@h/db",
        "postgres://u:hunter/2@h/db",
        "postgres://u:5432/hunter@h/db",
        "postgres://u:hunter#2@h:port/db",
        "user=u password=hunter two host=h",
        "user=u password=hunter two=Hunter3 host=h",
    ] {
        let shown = match text.parse::<ConnectionConfig>() {
            Ok(config) => format!("{config:?} {}", config.redacted()),
            Err(error) => format!("{error} {error:?}"),
        };
        assert!(!shown.contains("unter"), "{text}: {shown}");
    }
}

#[test]
fn require_auth() {
    let config: ConnectionConfig = "user=u require_auth=scram-sha-256,md5".parse().unwrap();
    let list = config.require_auth.unwrap();
    assert!(list.allows(AuthMethod::Scram) && !list.allows(AuthMethod::Password));
    let config: ConnectionConfig = "user=u require_auth=!password,!none".parse().unwrap();
    let list = config.require_auth.unwrap();
    assert!(list.allows(AuthMethod::Scram) && !list.allows(AuthMethod::Password));
    refuse("user=u require_auth=md5,!none");
    refuse("user=u require_auth=telepathy");
}

/// A value in the key=value form.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', r"\\").replace('\'', r"\'"))
}

proptest! {
    #[test]
    fn never_panics(text: String) {
        let _ = text.parse::<ConnectionConfig>();
        let _ = format!("postgres://{text}").parse::<ConnectionConfig>();
    }

    #[test]
    fn never_panics_on_what_looks_right(text in "(postgres://)?[a-z:@/?&=%,'\\[\\]\\\\ 0-9é]{0,60}") {
        let _ = text.parse::<ConnectionConfig>();
    }

    #[test]
    fn both_forms_carry_any_text(
        user in "[^\0]{1,12}",
        secret in "[^\0]{1,24}",
        database in "[^\0]{1,12}",
    ) {
        let url = format!(
            "postgres://{}:{}@h:1/{}",
            crate::percent::encode(&user),
            crate::percent::encode(&secret),
            crate::percent::encode(&database),
        );
        let keywords = format!(
            "host=h port=1 user={} password={} dbname={}",
            quoted(&user), quoted(&secret), quoted(&database),
        );
        for text in [url, keywords] {
            let config: ConnectionConfig = text.parse().unwrap();
            prop_assert_eq!(config.user(), &user);
            prop_assert_eq!(config.database(), &database);
            prop_assert_eq!(password(&config), &secret);
        }
    }

    #[test]
    fn redacted_never_contains_the_password(secret in "SECRET[ -~]{0,20}") {
        let text = format!("host=h user=u dbname=d options='-c x=y' password={}", quoted(&secret));
        let config: ConnectionConfig = text.parse().unwrap();
        prop_assert!(!config.redacted().contains("SECRET"));
        let shown = format!("{config:?}");
        prop_assert!(!shown.contains("SECRET"));
        // The redacted form is a connection string itself, and is stable.
        let again: ConnectionConfig = config.redacted().parse().unwrap();
        prop_assert_eq!(again.redacted(), config.redacted());
    }
}
