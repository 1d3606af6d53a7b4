//! The source's locale for the database that is restored into: what it decides, such as the case of a
//! letter, is in generated columns, checks and the order of keys.

use std::fmt::Write as _;

use lastgood_proto::manifest::Locale;
use tokio_postgres::error::SqlState;

use crate::sql::literal;

/// Options of CREATE DATABASE, the nearest to the source's locale first; the last one any server takes.
pub(crate) fn options(locale: Option<&Locale>) -> Vec<String> {
    let mut all = Vec::new();
    if let Some(locale) = locale {
        let libc = format!(
            " LC_COLLATE {} LC_CTYPE {}",
            literal(&locale.collate),
            literal(&locale.ctype)
        );
        let (provider, name) = match locale.provider {
            'i' => ("icu", "ICU_LOCALE"),
            'b' => ("builtin", "BUILTIN_LOCALE"),
            _ => ("libc", ""),
        };
        let mut whole = format!("{libc} LOCALE_PROVIDER {provider}");
        let named = locale.name.as_ref().filter(|_| !name.is_empty());
        if let Some(value) = named {
            let _ = write!(whole, " {name} {}", literal(value));
        }
        if let Some(rules) = &locale.icu_rules {
            let _ = write!(whole, " ICU_RULES {}", literal(rules));
        }
        all.push(whole);
        // A server before 15 knows no providers.
        all.push(libc);
    }
    all.push(String::new());
    all.push(" LC_COLLATE 'C' LC_CTYPE 'C'".to_owned());
    all
}

/// Whether the server does not have this locale, or not with this encoding.
pub(crate) fn is_unknown(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| {
        [
            SqlState::INVALID_PARAMETER_VALUE,
            SqlState::WRONG_OBJECT_TYPE,
            SqlState::SYNTAX_ERROR,
            SqlState::FEATURE_NOT_SUPPORTED,
            SqlState::UNDEFINED_OBJECT,
        ]
        .contains(code)
    })
}

/// What is to be said where the database has another one.
pub(crate) fn note(source: &Locale, target: &Locale) -> Option<String> {
    let (source, target) = (described(source), described(target));
    (source != target).then(|| {
        format!(
            "the database's locale is {target}, the source's is {source}: text is compared and \
             converted by it, in generated columns, checks and indexes too"
        )
    })
}

/// Without what is only another spelling: `de_DE.UTF-8` and `de_DE.utf8`.
fn described(locale: &Locale) -> String {
    let spelled = |name: &str| match name.split_once('.') {
        Some((language, set)) => {
            let set = set.replace('-', "");
            format!("{language}.{}", set.to_lowercase())
        }
        None => name.replace("POSIX", "C"),
    };
    let provider = match locale.provider {
        'i' => "icu",
        'b' => "builtin",
        _ => "libc",
    };
    let mut text = provider.to_owned();
    for part in [&locale.name, &locale.icu_rules].into_iter().flatten() {
        let _ = write!(text, " {part}");
    }
    let _ = write!(
        text,
        " (LC_COLLATE {}, LC_CTYPE {})",
        spelled(&locale.collate),
        spelled(&locale.ctype)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn libc(collate: &str, ctype: &str) -> Locale {
        Locale {
            provider: 'c',
            collate: collate.to_owned(),
            ctype: ctype.to_owned(),
            name: None,
            icu_rules: None,
        }
    }

    #[test]
    fn a_spelling_is_no_difference() {
        let source = libc("de_DE.UTF-8", "C");
        assert_eq!(note(&source, &libc("de_DE.utf8", "POSIX")), None);
        let said = note(&source, &libc("C", "C")).unwrap();
        assert!(
            said.contains(
                "is libc (LC_COLLATE C, LC_CTYPE C), the source's is libc (LC_COLLATE de_DE.utf8"
            ),
            "{said}"
        );
        let mut builtin = libc("C", "C");
        builtin.provider = 'b';
        builtin.name = Some("C.UTF-8".to_owned());
        assert!(note(&builtin, &libc("C", "C")).is_some());
    }

    #[test]
    fn the_whole_comes_first_and_what_every_server_has_last() {
        let mut locale = libc("C", "de_DE");
        locale.provider = 'i';
        locale.name = Some("de".to_owned());
        let expect = [
            " LC_COLLATE 'C' LC_CTYPE 'de_DE' LOCALE_PROVIDER icu ICU_LOCALE 'de'",
            " LC_COLLATE 'C' LC_CTYPE 'de_DE'",
            "",
            " LC_COLLATE 'C' LC_CTYPE 'C'",
        ];
        assert_eq!(options(Some(&locale)), expect);
        assert_eq!(options(None), expect[2..]);
    }
}
