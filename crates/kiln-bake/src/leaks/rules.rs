use std::collections::BTreeSet;

use super::finding::{CREDENTIALS, GIVEN, PASSWORD, PASSWORD_HASH, PRIVATE_KEY, URL_PASSWORD};
use super::tokens::TOKENS;

/// Changed whenever the rules are: what older ones found is then not relied on.
pub(crate) const RULES_VERSION: u32 = 3;

/// Every rule, by the name that excuses it.
pub(crate) fn rules() -> BTreeSet<&'static str> {
    let others = [
        PRIVATE_KEY,
        PASSWORD_HASH,
        CREDENTIALS,
        URL_PASSWORD,
        PASSWORD,
        GIVEN,
    ];
    TOKENS
        .iter()
        .map(|token| token.rule)
        .chain(others)
        .collect()
}
