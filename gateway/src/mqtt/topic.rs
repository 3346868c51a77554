//! Topic filters (MQTT 4.7): which topics one matches, which other filters it covers, which it shares topics with.
//!
//! Pure, without an allocation; both sides are valid by the time they come here. A filter whose first level is a
//! wildcard matches no topic that starts with `$` [MQTT-4.7.2-1].

pub(super) use super::codec::is_topic_filter;

/// Whether a topic name is matched by a filter.
pub fn matches(filter: &str, topic: &str) -> bool {
    if hides_dollar(filter, topic) {
        return false;
    }
    let mut topic = topic.split('/');
    for level in filter.split('/') {
        match (level, topic.next()) {
            // 4.7.1.2: `a/#` matches `a` as well.
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (level, Some(found)) if level == found => {}
            _ => return false,
        }
    }
    topic.next().is_none()
}

/// Whether every topic that `inner` matches is matched by `outer`.
pub fn covers(outer: &str, inner: &str) -> bool {
    if hides_dollar(outer, inner) {
        return false;
    }
    let mut inner = inner.split('/');
    for level in outer.split('/') {
        match (level, inner.next()) {
            ("#", _) => return true,
            (_, Some("#")) => return false,
            ("+", Some(_)) => {}
            (level, Some(found)) if level == found => {}
            _ => return false,
        }
    }
    inner.next().is_none()
}

/// Whether some topic is matched by both.
pub fn overlap(a: &str, b: &str) -> bool {
    if hides_dollar(a, b) || hides_dollar(b, a) {
        return false;
    }
    let (mut a, mut b) = (a.split('/'), b.split('/'));
    loop {
        match (a.next(), b.next()) {
            (Some("#"), _) | (_, Some("#")) => return true,
            (None, None) => return true,
            (Some(x), Some(y)) if x == y || x == "+" || y == "+" => {}
            _ => return false,
        }
    }
}

fn hides_dollar(filter: &str, other: &str) -> bool {
    other.starts_with('$') && (filter.starts_with('+') || filter.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn filters_match_as_the_specification_says() {
        for (filter, topic, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/ranking", true),
            ("sport/#", "sport", true),
            ("#", "a/b/c", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/x", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/x", true),
            ("$SYS/x", "$SYS/x", true),
            ("é/+", "é/ü", true),
            ("a", "A", false),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn a_filter_covers_what_is_narrower() {
        for (outer, inner, expected) in [
            ("#", "a/+/#", true),
            ("a/#", "a", true),
            ("a/#", "a/#", true),
            ("a/+", "a/#", false),
            ("a/+", "a/+", true),
            ("a/b", "a/+", false),
            ("+/b", "a/b", true),
            ("#", "$SYS/#", false),
            ("$SYS/#", "$SYS/+", true),
        ] {
            assert_eq!(covers(outer, inner), expected, "{outer} {inner}");
        }
    }

    #[test]
    fn filters_overlap_where_a_topic_fits_both() {
        for (a, b, expected) in [
            ("a/+", "+/b", true),
            ("a/+/c", "a/b/d", false),
            ("a/#", "a", true),
            ("a", "b", false),
            ("#", "$SYS/x", false),
            ("a/b", "a", false),
        ] {
            assert_eq!(overlap(a, b), expected, "{a} {b}");
            assert_eq!(overlap(b, a), expected, "{b} {a}");
        }
    }

    proptest! {
        #[test]
        fn cover_and_overlap_agree_with_matching(
            a in "(\\+|a|b|\\$)(/(\\+|a|b)){0,2}(/#)?",
            b in "(\\+|a|b|\\$)(/(\\+|a|b)){0,2}(/#)?",
            topic in "(a|b|\\$)(/(a|b)){0,3}",
        ) {
            if matches(&a, &topic) && matches(&b, &topic) {
                prop_assert!(overlap(&a, &b), "{} {} share {}", a, b, topic);
            }
            if covers(&a, &b) && matches(&b, &topic) {
                prop_assert!(matches(&a, &topic), "{} covers {} but not {}", a, b, topic);
            }
        }
    }
}
