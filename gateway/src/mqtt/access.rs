//! Who may publish and subscribe where: `[[allow]]` (pure).
//!
//! Without any `[[allow]]` whoever was let in may do everything. With one, only what an entry names is allowed. A
//! placeholder stands for exactly one topic level, so a name that holds `/`, `+` or `#` fits none.

use super::config::AllowConfig;
use super::topic;
use crate::problem::Problem;

/// Who is at the other end, as far as an authenticator has said.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Who {
    /// User name of the password file or common name of the certificate; `None` where there is no authenticator.
    pub identity: Option<String>,
    pub client_id: String,
}

#[derive(Clone, Debug, Default)]
pub struct Access {
    rules: Option<Vec<AllowConfig>>,
}

impl Access {
    pub fn new(rules: &[AllowConfig]) -> Self {
        Access { rules: (!rules.is_empty()).then(|| rules.to_vec()) }
    }

    pub fn may_publish(&self, who: &Who, topic_name: &str) -> bool {
        self.allows(who, |rule| &rule.publish, |pattern| topic::matches(pattern, topic_name))
    }

    /// Only if every topic of the filter may be seen.
    pub fn may_subscribe(&self, who: &Who, filter: &str) -> bool {
        self.allows(who, |rule| &rule.subscribe, |pattern| topic::covers(pattern, filter))
    }

    fn allows(&self, who: &Who, list: impl Fn(&AllowConfig) -> &Vec<String>, fits: impl Fn(&str) -> bool) -> bool {
        let Some(rules) = &self.rules else { return true };
        rules.iter().filter(|rule| is_meant(rule, who)).flat_map(list).any(|pattern| match pattern.contains('{') {
            true => fill(pattern, who).is_some_and(|filled| fits(&filled)),
            false => fits(pattern),
        })
    }
}

fn is_meant(rule: &AllowConfig, who: &Who) -> bool {
    rule.identity == "*" || who.identity.as_deref() == Some(&rule.identity)
}

/// `None` where a placeholder has no value or one that would say more than one level.
fn fill(pattern: &str, who: &Who) -> Option<String> {
    let mut filled = pattern.to_owned();
    for (name, value) in [("{identity}", who.identity.as_deref()), ("{client_id}", Some(who.client_id.as_str()))] {
        if filled.contains(name) {
            let value = value.filter(|v| !v.is_empty() && !v.contains(['/', '+', '#', '{', '}']))?;
            filled = filled.replace(name, value);
        }
    }
    Some(filled)
}

/// Mistakes of one `[[allow]]`.
pub fn check(at: usize, rule: &AllowConfig) -> Vec<Problem> {
    let mut problems = Vec::new();
    if rule.identity.is_empty() {
        problems.push(Problem::new(
            format!("allow[{at}].identity"),
            "name a user or a certificate's common name, or \"*\" for everyone",
        ));
    }
    for (list, patterns) in [("publish", &rule.publish), ("subscribe", &rule.subscribe)] {
        for (nth, pattern) in patterns.iter().enumerate() {
            let plain = pattern.replace("{identity}", "x").replace("{client_id}", "x");
            if !topic::is_topic_filter(&plain) || plain.contains(['{', '}']) {
                problems.push(Problem::new(
                    format!("allow[{at}].{list}[{nth}]"),
                    format!(
                        "{pattern:?} is not a topic filter; write levels apart by '/', with '+' or '#' alone in a \
                         level, and {{identity}} or {{client_id}}"
                    ),
                ));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(identity: &str, client_id: &str) -> Who {
        Who { identity: (!identity.is_empty()).then(|| identity.to_owned()), client_id: client_id.to_owned() }
    }

    fn rule(identity: &str, publish: &[&str], subscribe: &[&str]) -> AllowConfig {
        let own = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
        AllowConfig { identity: identity.into(), publish: own(publish), subscribe: own(subscribe) }
    }

    #[test]
    fn without_a_rule_everything_is_allowed() {
        assert!(Access::default().may_publish(&who("", "c"), "a/b"));
        assert!(Access::default().may_subscribe(&who("", "c"), "#"));
    }

    #[test]
    fn an_identity_reaches_its_own_topics_alone() {
        let access =
            Access::new(&[rule("*", &["site/{identity}/#"], &["cmd/{client_id}/+"]), rule("ops", &["#"], &["#"])]);
        assert!(access.may_publish(&who("pump", "p1"), "site/pump/t"));
        assert!(!access.may_publish(&who("pump", "p1"), "site/valve/t"));
        assert!(!access.may_publish(&who("", "p1"), "site//t"));
        assert!(access.may_subscribe(&who("pump", "p1"), "cmd/p1/+"));
        assert!(!access.may_subscribe(&who("pump", "p1"), "cmd/p1/#"));
        assert!(!access.may_subscribe(&who("pump", "p1"), "#"));
        assert!(access.may_subscribe(&who("ops", "x"), "#"));
        assert!(!access.may_subscribe(&who("ops", "x"), "$SYS/#"));
    }

    #[test]
    fn a_name_with_wildcards_does_not_widen_a_rule() {
        let access = Access::new(&[rule("*", &["site/{identity}/#"], &["{client_id}"])]);
        assert!(!access.may_publish(&who("+", "c"), "site/pump/t"));
        assert!(!access.may_subscribe(&who("pump", "#"), "anything"));
        assert!(!access.may_publish(&who("{client_id}", "pump"), "site/pump/t"));
    }
}
