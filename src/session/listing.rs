//! Who is here, as operators ask: filtered, and page by page.

use std::num::NonZeroUsize;
use std::sync::Arc;

use super::roster::Visitor;
use crate::access::Network;

/// Which sessions are wanted; what is not given does not matter.
#[derive(Debug, Default)]
pub struct Filter {
    /// Those of this user.
    pub user: Option<String>,
    /// The one whose client calls itself so; of several users, each may have one.
    pub client_id: Option<String>,
    /// Those that have this role, perhaps among others.
    pub role: Option<String>,
    /// Those from there.
    pub address: Option<Network>,
}

/// Some of the sessions that were wanted, in the order of their numbers.
#[derive(Debug)]
pub struct Page {
    /// They.
    pub visitors: Vec<Arc<Visitor>>,
    /// There are more, behind this number.
    pub next: Option<u64>,
}

impl Filter {
    /// Whether this session is wanted.
    pub fn fits(&self, visitor: &Visitor) -> bool {
        let rights = visitor.rights.load();
        let identity = rights.as_ref().map(|rights| rights.identity());
        let has_role = |role: &str| identity.is_some_and(|identity| identity.roles.iter().any(|has| **has == *role));
        let is_user = |user: &str| identity.and_then(|identity| identity.user.as_deref()) == Some(user);
        self.user.as_deref().is_none_or(is_user)
            && self.client_id.as_deref().is_none_or(|client_id| *visitor.client_id == *client_id)
            && self.role.as_deref().is_none_or(has_role)
            && self.address.as_ref().is_none_or(|network| network.contains(visitor.address))
    }
}

/// The first so many of those that are wanted whose number is beyond `after`. A session keeps its number, so that one who asks for page
/// after page sees each session once that is there all the time.
pub fn page(mut visitors: Vec<Arc<Visitor>>, filter: &Filter, after: Option<u64>, limit: NonZeroUsize) -> Page {
    visitors.retain(|visitor| after.is_none_or(|after| visitor.session_id > after) && filter.fits(visitor));
    visitors.sort_unstable_by_key(|visitor| visitor.session_id);
    let has_more = visitors.len() > limit.get();
    visitors.truncate(limit.get());
    let next = visitors.last().filter(|_| has_more).map(|last| last.session_id);
    Page { visitors, next }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::identity::names;
    use crate::access::{Identity, Rights};

    fn visitor(number: u64, user: &str, client_id: &str, roles: &[&str], address: [u8; 4]) -> Arc<Visitor> {
        let identity = Identity { user: Some(user.into()), roles: names(roles), ..Identity::anonymous(&[]) };
        let rights = Arc::new(Rights::new(Arc::default(), identity, client_id));
        Visitor::new(number, address.into(), client_id, Some(rights), None)
    }

    fn numbers(page: &Page) -> Vec<u64> {
        page.visitors.iter().map(|visitor| visitor.session_id).collect()
    }

    fn limit(most: usize) -> NonZeroUsize {
        NonZeroUsize::new(most).expect("some")
    }

    #[test]
    fn a_filter_asks_for_all_that_it_names() {
        let visitors = [
            visitor(3, "anna", "c1", &["viewer"], [10, 0, 0, 1]),
            visitor(1, "anna", "c2", &["viewer", "operator"], [10, 0, 1, 1]),
            visitor(2, "bob", "c1", &["operator"], [192, 168, 0, 1]),
            Visitor::new(4, [127, 0, 0, 1].into(), "c4", None, None),
        ];
        let text = |text: &str| Some(text.to_owned());
        let none = Filter::default;
        let network = |text: &str| Some(text.parse().expect("a network"));
        for (filter, expected) in [
            (none(), vec![1, 2, 3, 4]),
            (Filter { user: text("anna"), ..none() }, vec![1, 3]),
            (Filter { client_id: text("c1"), ..none() }, vec![2, 3]),
            (Filter { role: text("operator"), ..none() }, vec![1, 2]),
            (Filter { address: network("10.0.0.0/16"), ..none() }, vec![1, 3]),
            (Filter { address: network("10.0.1.1"), ..none() }, vec![1]),
            (Filter { user: text("anna"), role: text("operator"), ..none() }, vec![1]),
            (Filter { user: text("nobody"), ..none() }, vec![]),
        ] {
            assert_eq!(numbers(&page(visitors.to_vec(), &filter, None, limit(10))), expected, "{filter:?}");
        }
    }

    #[test]
    fn pages_follow_one_another_though_sessions_come_and_go() {
        let at = |number| visitor(number, "anna", "c1", &[], [127, 0, 0, 1]);
        let mut visitors: Vec<_> = [50, 10, 40, 20, 30].into_iter().map(at).collect();
        let first = page(visitors.clone(), &Filter::default(), None, limit(2));
        assert_eq!((numbers(&first), first.next), (vec![10, 20], Some(20)));
        visitors.retain(|visitor| visitor.session_id != 20);
        visitors.push(at(5));
        let second = page(visitors.clone(), &Filter::default(), first.next, limit(2));
        assert_eq!((numbers(&second), second.next), (vec![30, 40], Some(40)));
        let last = page(visitors, &Filter::default(), second.next, limit(2));
        assert_eq!((numbers(&last), last.next), (vec![50], None));
        assert_eq!(page(Vec::new(), &Filter::default(), last.next, limit(2)).next, None);
    }
}
