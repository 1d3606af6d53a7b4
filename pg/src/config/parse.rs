//! The two forms of a connection string, read as libpq reads them (`fe-connect.c`,
//! `conninfo_parse` and `conninfo_uri_parse_options`).
//!
//! Both end as a list of (parameter, value) in the order given; what a parameter means is decided
//! in the parent module. No error repeats any part of the text: it may hold a password.

use zeroize::Zeroizing;

use super::ConfigError;

/// A parameter and its value. The value may be the password, so every one is wiped on drop.
pub(super) type Pair = (String, Zeroizing<String>);

pub(super) fn parse(text: &str) -> Result<Vec<Pair>, ConfigError> {
    let pairs = match ["postgresql://", "postgres://"]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme))
    {
        Some(rest) => url(rest)?,
        None => keywords(text)?,
    };
    // The startup message and the environment of child processes end at a zero byte.
    match pairs.iter().any(|(_, value)| value.contains('\0')) {
        true => Err(ConfigError::ZeroByte),
        false => Ok(pairs),
    }
}

/// `host=localhost password='it''s \'quoted\''`
fn keywords(text: &str) -> Result<Vec<Pair>, ConfigError> {
    let mut pairs = Vec::new();
    let mut rest = text.trim_start_matches(is_blank);
    while !rest.is_empty() {
        let end = rest
            .find(|c| c == '=' || is_blank(c))
            .ok_or(ConfigError::MissingEquals)?;
        let (name, after) = rest.split_at(end);
        let after = after
            .trim_start_matches(is_blank)
            .strip_prefix('=')
            .ok_or(ConfigError::MissingEquals)?
            .trim_start_matches(is_blank);
        let (value, after) = keyword_value(after)?;
        pairs.push((name.to_owned(), value));
        rest = after.trim_start_matches(is_blank);
    }
    Ok(pairs)
}

/// What C's `isspace` holds for a blank in the C locale.
fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

/// One value, quoted or bare, and what follows it.
fn keyword_value(text: &str) -> Result<(Zeroizing<String>, &str), ConfigError> {
    let (body, quoted) = match text.strip_prefix('\'') {
        Some(body) => (body, true),
        None => (text, false),
    };
    let mut value = Zeroizing::new(String::with_capacity(body.len()));
    let mut characters = body.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => {
                if let Some((_, escaped)) = characters.next() {
                    value.push(escaped);
                }
            }
            '\'' if quoted => return Ok((value, &body[at + 1..])),
            c if !quoted && is_blank(c) => return Ok((value, &body[at..])),
            c => value.push(c),
        }
    }
    match quoted {
        true => Err(ConfigError::UnterminatedQuote),
        false => Ok((value, "")),
    }
}

/// `[user[:password]@][host[:port][,...]][/database][?parameter=value[&...]]`
fn url(text: &str) -> Result<Vec<Pair>, ConfigError> {
    let mut pairs = Vec::new();
    let mut push = |name: &str, encoded: &str| -> Result<(), ConfigError> {
        if !encoded.is_empty() {
            pairs.push((name.to_owned(), decode(encoded)?));
        }
        Ok(())
    };

    let mut rest = text;
    if let Some(at) = text
        .find(['@', '/'])
        .filter(|&at| text[at..].starts_with('@'))
    {
        let (user, password) = text[..at].split_once(':').unwrap_or((&text[..at], ""));
        push("user", user)?;
        push("password", password)?;
        rest = &text[at + 1..];
    }

    let (authority, after) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (hosts, ports) = host_list(authority)?;
    push("host", &hosts)?;
    push("port", &ports)?;

    let (path, query) = match after.split_once('?') {
        Some((path, query)) => (path, query),
        None => (after, ""),
    };
    // An `@` here is nearly always one half of a password that was not percent-encoded; taken as
    // a name it would be shown wherever names are shown.
    if path.contains('@') {
        return Err(ConfigError::StrayAt);
    }
    push("dbname", path.strip_prefix('/').unwrap_or(path))?;

    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter
            .split_once('=')
            .ok_or(ConfigError::MissingEquals)?;
        let name = decode(name)?;
        // JDBC's spelling, which libpq takes as well.
        match (name.as_str(), value) {
            ("ssl", "true") => pairs.push(("sslmode".into(), Zeroizing::new("require".into()))),
            (name, value) => pairs.push((name.to_owned(), decode(value)?)),
        }
    }
    Ok(pairs)
}

/// Splits `host:port,[::1]:port,...` into a list of hosts and a list of ports, both with commas.
fn host_list(authority: &str) -> Result<(String, String), ConfigError> {
    let mut hosts = Vec::new();
    let mut ports = Vec::new();
    for part in authority.split(',') {
        let (host, after) = match part.strip_prefix('[') {
            Some(bracketed) => bracketed.split_once(']').ok_or(ConfigError::InvalidValue {
                name: "host",
                expected: "an IPv6 address in brackets",
            })?,
            None => part.split_at(part.find(':').unwrap_or(part.len())),
        };
        let port = match after.strip_prefix(':') {
            Some(port) => port,
            None if after.is_empty() => "",
            None => return Err(ConfigError::Port),
        };
        hosts.push(host);
        ports.push(port);
    }
    let join = |list: Vec<&str>| match list.iter().all(|item| item.is_empty()) {
        true => String::new(),
        false => list.join(","),
    };
    Ok((join(hosts), join(ports)))
}

/// Percent-decoding; `+` is a plus sign, as in libpq.
fn decode(text: &str) -> Result<Zeroizing<String>, ConfigError> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(text.len()));
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = after;
            continue;
        }
        let digit = |at: usize| {
            after
                .get(at)
                .and_then(|&c| char::from(c).to_digit(16))
                .and_then(|digit| u8::try_from(digit).ok())
        };
        let (Some(high), Some(low)) = (digit(0), digit(1)) else {
            return Err(ConfigError::PercentEncoding);
        };
        bytes.push(high << 4 | low);
        rest = after.get(2..).unwrap_or_default();
    }
    std::str::from_utf8(&bytes)
        .map(|text| Zeroizing::new(text.to_owned()))
        .map_err(|_| ConfigError::PercentEncoding)
}
