//! Which handler does the jobs of which type. Built at start-up, then only read.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::{Handler, LogHandler};
use crate::job::is_type_name;
use crate::retry::RetryPolicy;

/// Stands for every type that has no handler of its own.
pub const EVERY_OTHER_TYPE: &str = "*";

/// The types of the original system, which [`built_in`] only logs.
pub const ORIGINAL_TYPES: [&str; 5] =
    ["send_email", "export_user_data", "process_payment", "Notification", "ReportGeneration"];

/// A handler and what its type sets otherwise than the service.
#[derive(Clone)]
pub struct Entry {
    /// Does the work.
    pub handler: Arc<dyn Handler>,
    /// Waits between the attempts; the service's where `None`.
    pub retry: Option<RetryPolicy>,
    /// Time limit of an attempt, for jobs that name none; the service's where `None`.
    pub timeout: Option<Duration>,
}

impl Entry {
    /// The handler, with every setting left to the service.
    pub fn new(handler: impl Handler + 'static) -> Entry {
        Entry { handler: Arc::new(handler), retry: None, timeout: None }
    }
}

/// Job type → [`Entry`].
#[derive(Clone, Default)]
pub struct Registry {
    entries: BTreeMap<String, Entry>,
    every_other: Option<Entry>,
}

impl Registry {
    /// A registry without any type.
    pub fn new() -> Registry {
        Registry::default()
    }

    /// Lets `handler` do the jobs of `job_type`, in place of the one before, if any. [`EVERY_OTHER_TYPE`] is a type here.
    ///
    /// Returns the new entry, so that its retry policy or time limit can be set.
    ///
    /// # Panics
    /// If no job can have that type (see [`is_type_name`]): the type is a literal in a program, and such a handler would
    /// never be called.
    pub fn register(&mut self, job_type: &str, handler: impl Handler + 'static) -> &mut Entry {
        assert!(
            job_type == EVERY_OTHER_TYPE || is_type_name(job_type),
            "`{job_type}` cannot be a job type: 1 to 100 of A-Z a-z 0-9 . _ : -"
        );
        let entry = Entry::new(handler);
        if job_type == EVERY_OTHER_TYPE {
            self.every_other.insert(entry)
        } else {
            let place = self.entries.entry(job_type.to_owned());
            place.insert_entry(entry).into_mut()
        }
    }

    /// The entry for that type: its own, or the one for [`EVERY_OTHER_TYPE`], or `None`.
    pub fn get(&self, job_type: &str) -> Option<&Entry> {
        self.entries.get(job_type).or(self.every_other.as_ref())
    }

    /// The types that have a handler, in order; [`EVERY_OTHER_TYPE`] last where there is one for it.
    pub fn types(&self) -> impl Iterator<Item = &str> {
        let every_other = self.every_other.as_ref().map(|_| EVERY_OTHER_TYPE);
        self.entries.keys().map(String::as_str).chain(every_other)
    }

    /// Whether no type has a handler.
    pub fn is_empty(&self) -> bool {
        self.types().next().is_none()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.types()).finish()
    }
}

/// The registry of a service without a handlers file: logs the jobs of [`ORIGINAL_TYPES`], so that samples run.
pub fn built_in() -> Registry {
    let mut registry = Registry::new();
    for job_type in ORIGINAL_TYPES {
        registry.register(job_type, LogHandler);
    }
    registry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handlers::testing::report_of;
    use crate::retry::Report;

    fn report(registry: &Registry, job_type: &str) -> Option<Report> {
        registry.get(job_type).map(|entry| report_of(entry.handler.as_ref(), job_type, "{}"))
    }

    #[test]
    fn a_type_without_a_handler_has_no_entry() {
        let registry = built_in();

        assert!(registry.get("unheard_of").is_none());
        assert!(registry.get("Send_Email").is_none(), "types are told apart by case");
    }

    #[test]
    fn the_handler_for_every_other_type_gives_way_to_a_types_own() {
        let mut registry = Registry::new();
        registry.register("*", |_: &super::super::Attempt<'_>| Report::permanent("any"));
        registry.register("own", |_: &super::super::Attempt<'_>| Report::Done);

        assert_eq!(report(&registry, "own"), Some(Report::Done));
        assert_eq!(report(&registry, "unheard_of"), Some(Report::permanent("any")));
        assert_eq!(registry.types().collect::<Vec<_>>(), ["own", "*"]);
    }

    #[test]
    fn a_type_may_have_a_time_limit_and_a_policy_of_its_own() {
        let mut registry = Registry::new();
        registry.register("slow", LogHandler).timeout = Some(Duration::from_secs(90));

        let entry = registry.get("slow").expect("registered");
        assert_eq!((entry.timeout, entry.retry), (Some(Duration::from_secs(90)), None));
    }

    #[test]
    fn the_last_handler_of_a_type_counts() {
        let mut registry = Registry::new();
        registry.register("a", |_: &super::super::Attempt<'_>| Report::retry("first"));
        registry.register("a", |_: &super::super::Attempt<'_>| Report::Done);

        assert_eq!(report(&registry, "a"), Some(Report::Done));
    }

    #[test]
    #[should_panic(expected = "cannot be a job type")]
    fn a_type_that_no_job_can_have_is_refused() {
        Registry::new().register("send email", LogHandler);
    }

    #[test]
    fn the_built_in_registry_does_the_types_of_the_original() {
        let registry = built_in();

        for job_type in ORIGINAL_TYPES {
            assert_eq!(report(&registry, job_type), Some(Report::Done), "{job_type}");
        }
        assert_eq!(registry.types().count(), ORIGINAL_TYPES.len());
        assert!(!registry.is_empty() && Registry::new().is_empty());
    }
}
