//! The rules of `docs/rules.md` as the checks name them.
//!
//! A check asks whether its rule is on: `if on("DS-012") && wrong { return Err(…) }`. It always is, but in this crate's own unit
//! tests, where one rule at a time can be switched off: `src/tests/switched_off.rs` runs each rule's tests without it and expects
//! them to fail. What ships has no switch.

/// Whether the rule with this id is enforced.
#[cfg(not(test))]
#[inline(always)]
pub const fn on(_id: &str) -> bool {
    true
}

/// Whether the rule with this id is enforced: not if the variable `MIMI_RULE_OFF` of this process names it.
#[cfg(test)]
pub fn on(id: &str) -> bool {
    static OFF: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    OFF.get_or_init(|| std::env::var("MIMI_RULE_OFF").ok()).as_deref() != Some(id)
}

/// What a check answers that cannot be passed over, because nothing can go on without what it checks (octets that do not
/// parse): `right` while the rule is on, else `wrong`, so that a test which names the right answer fails without the rule.
pub fn answer<T>(id: &str, right: T, wrong: T) -> T {
    if on(id) { right } else { wrong }
}
