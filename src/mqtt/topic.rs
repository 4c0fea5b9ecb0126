//! Topics and the filters that match them, as MQTT 5 section 4.7 has them: parse, match, cover.
//!
//! A topic is a path of levels between slashes; an empty level counts. In a filter, `+` stands for
//! any one level, and a last level `#` for any number of them, none included. A filter that begins
//! with a wildcard passes over the topics that begin with `$`.

use std::{fmt, sync::Arc};

/// What a message is published to: 1 to 65,535 bytes, without wildcards and U+0000. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(Arc<str>);

impl Topic {
    /// Takes `text` as it is: nothing is trimmed, folded or normalised.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        check_text(text)?;
        if text.contains(['+', '#']) {
            return Err(TopicError::WildcardInTopic);
        }
        Ok(Self(text.into()))
    }

    /// The topic as it was parsed.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a session subscribes to: a pattern of topics, or `$share/group/pattern`. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicFilter {
    text: Arc<str>,
    /// Where the pattern begins in `text`: 0, unless the filter is shared.
    pattern_at: usize,
}

impl TopicFilter {
    /// Takes `text` as it is. What begins with the level `$share` is a shared filter or an error.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        check_text(text)?;
        let pattern = without_share(text)?;
        check_wildcards(pattern)?;
        Ok(Self { text: text.into(), pattern_at: text.len() - pattern.len() })
    }

    /// The filter as it was parsed, and as the broker is asked for it.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The part that topics are matched against: the filter without `$share/group/`.
    pub fn pattern(&self) -> &str {
        &self.text[self.pattern_at..]
    }

    /// Whether the broker divides the messages among the members of a group.
    pub fn is_shared(&self) -> bool {
        self.pattern_at > 0
    }

    /// The group among whose members the messages are divided.
    pub fn shared_group(&self) -> Option<&str> {
        self.is_shared().then(|| &self.text["$share/".len()..self.pattern_at - 1])
    }

    /// Whether messages on `topic` are meant.
    pub fn matches(&self, topic: &Topic) -> bool {
        matches(self.pattern(), topic.as_str())
    }

    /// Whether this filter matches every topic that `other` matches. Shares make no difference.
    pub fn covers(&self, other: &TopicFilter) -> bool {
        covers(self.pattern(), other.pattern())
    }

    /// Whether some topic is matched by both filters. Shares make no difference.
    pub fn intersects(&self, other: &TopicFilter) -> bool {
        intersects(self.pattern(), other.pattern())
    }
}

/// The rule beneath [`TopicFilter::covers`], for those who hold plain text, both of it valid patterns.
pub fn covers(ours: &str, theirs: &str) -> bool {
    if passes_over(ours, theirs) {
        return false;
    }
    let (mut our_levels, mut their_levels) = (ours.split('/'), theirs.split('/'));
    loop {
        match (our_levels.next(), their_levels.next()) {
            (Some("#"), _) | (None, None) => return true,
            // Their `#` may stand for no level, our `+` may not. But no topic is empty, so at
            // the start of a filter, or behind one empty level, it stands for one at least.
            (Some("+"), Some("#")) => {
                return matches!(theirs, "#" | "/#") && our_levels.next() == Some("#");
            }
            (Some("+"), Some(_)) => {}
            (Some(our), Some(their)) if our == their => {}
            _ => return false,
        }
    }
}

/// The rule beneath [`TopicFilter::intersects`], for those who hold plain text, both of it valid patterns.
pub fn intersects(ours: &str, theirs: &str) -> bool {
    if passes_over(ours, theirs) || passes_over(theirs, ours) {
        return false;
    }
    // All that these two share is the empty topic, which is none.
    if let ("+", "/#") | ("/#", "+") = (ours, theirs) {
        return false;
    }
    let (mut our_levels, mut their_levels) = (ours.split('/'), theirs.split('/'));
    loop {
        match (our_levels.next(), their_levels.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some("+"), Some(_)) | (Some(_), Some("+")) => {}
            (Some(our), Some(their)) if our == their => {}
            _ => return false,
        }
    }
}

/// Whether `topic` is one that `pattern` means: the rule beneath [`TopicFilter::matches`], for
/// those who hold plain text. Both must be valid, `pattern` without a share; never allocates.
pub fn matches(pattern: &str, topic: &str) -> bool {
    // Most filters are topics.
    if pattern == topic {
        return true;
    }
    if passes_over(pattern, topic) {
        return false;
    }
    let (mut levels, mut names) = (pattern.split('/'), topic.split('/'));
    loop {
        match (levels.next(), names.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(level), Some(name)) if level == name => {}
            _ => return false,
        }
    }
}

/// Whether `pattern` leaves out all of `topics`, a topic or a pattern, because those begin with `$`.
fn passes_over(pattern: &str, topics: &str) -> bool {
    topics.starts_with('$') && pattern.starts_with(['+', '#'])
}

/// Why a text is no topic or no filter; each says in a sentence what to mend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences say it")]
pub enum TopicError {
    #[error("a topic or topic filter must hold at least one character")]
    Empty,
    #[error("a topic or topic filter may hold at most 65,535 bytes of UTF-8, this one has {bytes}")]
    TooLong { bytes: usize },
    #[error("a topic or topic filter may not hold the character U+0000")]
    Nul,
    #[error("a topic may not hold `+` or `#`: these are wildcards, for topic filters only")]
    WildcardInTopic,
    #[error("a topic filter may hold `+` and `#` only as whole levels, as in `a/+/c` or `a/#`")]
    WildcardInLevel,
    #[error("a topic filter may hold `#` only as its last level")]
    HashNotLast,
    #[error("a shared topic filter must have the form `$share/group/filter`, with no part empty")]
    IncompleteShare,
    #[error("the group of a shared topic filter may not hold `+` or `#`")]
    WildcardInGroup,
    #[error("a shared topic filter may not hold another one: give `$share/group/` only once")]
    NestedShare,
}

fn check_text(text: &str) -> Result<(), TopicError> {
    match text.len() {
        0 => Err(TopicError::Empty),
        bytes if bytes > usize::from(u16::MAX) => Err(TopicError::TooLong { bytes }),
        _ if text.contains('\0') => Err(TopicError::Nul),
        _ => Ok(()),
    }
}

fn without_share(filter: &str) -> Result<&str, TopicError> {
    let mut parts = filter.splitn(3, '/');
    if parts.next() != Some("$share") {
        return Ok(filter);
    }
    match (parts.next(), parts.next()) {
        (None | Some(""), _) | (_, None | Some("")) => Err(TopicError::IncompleteShare),
        (Some(group), _) if group.contains(['+', '#']) => Err(TopicError::WildcardInGroup),
        (_, Some(inner)) if inner.split('/').next() == Some("$share") => Err(TopicError::NestedShare),
        (_, Some(pattern)) => Ok(pattern),
    }
}

fn check_wildcards(pattern: &str) -> Result<(), TopicError> {
    let mut levels = pattern.split('/');
    while let Some(level) = levels.next() {
        match level {
            "+" => {}
            "#" if levels.next().is_some() => return Err(TopicError::HashNotLast),
            "#" => {}
            _ if level.contains(['+', '#']) => return Err(TopicError::WildcardInLevel),
            _ => {}
        }
    }
    Ok(())
}

impl AsRef<str> for Topic {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for TopicFilter {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::{TopicError::*, *};
    use proptest::{collection::vec, prelude::*, sample::select};

    fn topic(text: &str) -> Topic {
        Topic::parse(text).unwrap()
    }

    fn filter(text: &str) -> TopicFilter {
        TopicFilter::parse(text).unwrap()
    }

    /// Topics of few words, so that patterns often meet them.
    pub(crate) fn any_topic() -> impl Strategy<Value = String> {
        let words = vec!["", "a", "a", "b", "é", "$", "$a", "日本"];
        vec(select(words), 1..6)
            .prop_map(|levels| levels.join("/"))
            .prop_filter("a topic", |text| Topic::parse(text).is_ok())
    }

    /// Patterns over the words of [`any_topic`].
    pub(crate) fn any_pattern() -> impl Strategy<Value = String> {
        let words = vec!["", "a", "a", "b", "é", "$", "$a", "日本", "+", "+", "+"];
        (vec(select(words), 0..6), any::<bool>())
            .prop_map(|(levels, hash)| [levels, vec!["#"; hash.into()]].concat().join("/"))
            .prop_filter("a pattern", |text| TopicFilter::parse(text).is_ok())
    }

    /// Every path of one to `depth` of these levels that is not empty.
    fn paths(words: &[&str], depth: usize) -> Vec<String> {
        let mut paths: Vec<String> = words.iter().map(|word| word.to_string()).collect();
        let mut longest = paths.clone();
        for _ in 1..depth {
            let longer = |path| words.iter().map(move |word| format!("{path}/{word}"));
            longest = longest.iter().flat_map(longer).collect();
            paths.extend_from_slice(&longest);
        }
        paths.retain(|path| !path.is_empty());
        paths
    }

    /// Every pattern that matches `topic`, built from it: any levels become `+`, any tail `#`.
    fn patterns_of(topic: &str) -> Vec<String> {
        let (mut patterns, mut heads) = (vec!["#".to_string()], vec![String::new()]);
        for (depth, name) in topic.split('/').enumerate() {
            let slash = if depth == 0 { "" } else { "/" };
            let longer = |head| [name, "+"].map(|level| format!("{head}{slash}{level}"));
            heads = heads.iter().flat_map(longer).collect();
            patterns.extend(heads.iter().map(|head| format!("{head}/#")));
        }
        patterns.extend(heads);
        patterns.retain(|pattern| !topic.starts_with('$') || !pattern.starts_with(['+', '#']));
        patterns
    }

    #[test]
    fn a_topic_is_any_text_without_wildcards_and_nul() {
        let longest = "é".repeat(32_767) + "x";
        let usual = "a / // /a a/ $SYS/x $share/g/a 日本/".split(' ');
        for good in usual.chain([" ", "a b/\u{1}", &longest]) {
            assert_eq!(topic(good).as_str(), good);
        }
        for (error, texts) in [
            (Empty, ""),
            (Nul, "\0 a/\0"),
            (WildcardInTopic, "+ a/+ a# a/#/b"),
            (TooLong { bytes: 65_536 }, &(longest + "x")),
        ] {
            for bad in texts.split(' ') {
                assert_eq!(Topic::parse(bad), Err(error), "{bad:?}");
            }
        }
    }

    #[test]
    fn a_filter_is_text_whose_wildcards_are_whole_levels() {
        for good in "# + / /# +//+ a/+/é/# $SYS/# $shared/a a/$share".split(' ') {
            let filter = filter(good);
            let parts = (filter.pattern(), filter.shared_group());
            assert_eq!(parts, (good, None), "{good}");
        }
        for (error, texts) in [
            (Empty, ""),
            (Nul, "\0 a/\0 $share/\0/a"),
            (WildcardInLevel, "a+ a/#b a/++/b 日# ## $share/g/a+"),
            (HashNotLast, "#/ a/#/b #/# $share/g/#/a"),
            (IncompleteShare, "$share $share/ $share/g $share/g/ $share//a"),
            (WildcardInGroup, "$share/+/a $share/g#/a"),
            (NestedShare, "$share/g/$share/h/a $share/g/$share"),
            (TooLong { bytes: 65_536 }, &"/".repeat(65_536)),
        ] {
            for bad in texts.split(' ') {
                assert_eq!(TopicFilter::parse(bad), Err(error), "{bad:?}");
            }
        }
    }

    #[test]
    fn a_shared_filter_has_a_group_and_a_pattern() {
        for (shared, group, pattern) in [
            ("$share/g/a/+", "g", "a/+"),
            ("$share/日本/#", "日本", "#"),
            ("$share/g//", "g", "/"),
            ("$share/$share/$SYS/#", "$share", "$SYS/#"),
        ] {
            let filter = filter(shared);
            let parts = (filter.shared_group(), filter.pattern());
            assert_eq!(parts, (Some(group), pattern), "{shared}");
            assert_eq!((filter.is_shared(), filter.as_str()), (true, shared));
        }
    }

    #[test]
    fn filters_match_as_the_standard_says() {
        for (pattern, matched, passed_over) in [
            ("a/b", "a/b", "a a/b/ /a/b A/b a/b/c"),
            ("a/#", "a a/ a/b a/b/c", "/a ab b"),
            ("a/+", "a/b a/ a/$x", "a a/b/c"),
            ("+", "a 日本", "/ /a $SYS"),
            ("/+", "/a /", "a //"),
            ("+/+", "/a / é/ü", "a $SYS/a"),
            ("#", "a / é/ü/ a/$SYS", "$ $SYS/a"),
            ("+/b/#", "/b a/b/c", "$SYS/b b"),
            ("$SYS/#", "$SYS $SYS/a/b", "SYS $sys"),
            ("$SYS/+", "$SYS/a", "$SYS"),
        ] {
            let filters = [filter(pattern), filter(&format!("$share/g/{pattern}"))];
            for (topics, answer) in [(matched, true), (passed_over, false)] {
                for name in topics.split(' ') {
                    let answers = filters.each_ref().map(|filter| filter.matches(&topic(name)));
                    assert_eq!(answers, [answer; 2], "{pattern} {name}");
                }
            }
        }
    }

    #[test]
    fn covers_and_intersects_say_what_trying_every_topic_says() {
        // `z` stands for all the words that no pattern names.
        let topics = paths(&["", "a", "$a", "z"], 4);
        let matched = |filter: &TopicFilter| -> Vec<bool> {
            let matched = topics.iter().map(|topic| matches(filter.as_str(), topic));
            matched.collect()
        };
        let filters: Vec<_> = paths(&["", "a", "$a", "+", "#"], 3)
            .iter()
            .filter_map(|text| TopicFilter::parse(text).ok())
            .map(|filter| (matched(&filter), filter))
            .collect();
        for (our_topics, ours) in &filters {
            for (their_topics, theirs) in &filters {
                let mut both = our_topics.iter().zip(their_topics);
                let covers = both.clone().all(|(our, their)| *our || !their);
                let intersects = both.any(|(our, their)| *our && *their);
                let answers = (ours.covers(theirs), ours.intersects(theirs));
                assert_eq!(answers, (covers, intersects), "{ours} and {theirs}");
            }
        }
        assert!(filter("$share/g/a/#").covers(&filter("$share/h/a")));
        assert!(filter("$share/g/a/+").intersects(&filter("+/b")));
    }

    proptest! {
        #[test]
        fn a_filter_matches_exactly_the_topics_it_can_be_built_from(
            pattern in any_pattern(), topic in any_topic()
        ) {
            let patterns = patterns_of(&topic);
            prop_assert_eq!(matches(&pattern, &topic), patterns.contains(&pattern));
            for pattern in patterns {
                prop_assert!(matches(&pattern, &topic), "{} {}", pattern, topic);
            }
        }

        #[test]
        fn what_was_parsed_is_given_back_whole(text in "(\\$share/)?[ab+#/$\0日]{0,12}") {
            if let Ok(topic) = Topic::parse(&text) {
                prop_assert_eq!(topic.as_ref(), &text);
                prop_assert!(matches(&text, &text));
            }
            if let Ok(filter) = TopicFilter::parse(&text) {
                prop_assert_eq!(filter.to_string(), &text[..]);
                prop_assert!(filter.covers(&filter));
                let group = filter.shared_group().map_or(String::new(), |g| format!("$share/{g}/"));
                prop_assert_eq!(group + filter.pattern(), text);
            }
        }
    }
}
