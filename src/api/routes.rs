//! Which path and method mean what.

use uuid::Uuid;

use super::problem::{Kind, Problem};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Enqueue,
    Jobs,
    Job(Uuid),
    Cancel(Uuid),
    DeadLetters,
    Revive(Uuid),
    Wake,
    Health,
    Ready,
    Metrics,
    OpenApi,
}

/// Every route as the documentation writes it: path, methods, whether a replica of the role `worker` has it.
pub(super) const ROUTES: [(&str, &str, bool); 11] = [
    ("/enqueue", "POST", false),
    ("/getAllJobs", "GET, HEAD", false),
    ("/jobs/{id}", "GET, HEAD", false),
    ("/jobs/{id}/cancel", "POST", false),
    ("/failed-jobs", "GET, HEAD", false),
    ("/failed-jobs/{id}/retry", "POST", false),
    ("/scheduler/wake", "POST", false),
    ("/healthz", "GET, HEAD", true),
    ("/readyz", "GET, HEAD", true),
    ("/metrics", "GET, HEAD", true),
    ("/openapi.json", "GET, HEAD", false),
];

/// The path of a request target, and what stands behind its `?`. Knows the whole URL that a proxy sends (RFC 9112, section 3.2.2).
pub(super) fn split_target(target: &str) -> (&str, &str) {
    let behind_scheme = target.strip_prefix("http://").or_else(|| target.strip_prefix("https://"));
    let origin_form = match behind_scheme {
        Some(rest) => rest.find(['/', '?']).map_or("/", |start| &rest[start..]),
        None => target,
    };
    origin_form.split_once('?').unwrap_or((origin_form, ""))
}

/// The route of a path and a method. `HEAD` finds what `GET` finds.
///
/// # Errors
/// 404 that names the known paths, 405 with `Allow`.
pub(super) fn find(path: &str, method: &str, probes_only: bool) -> Result<Route, Problem> {
    let known = pattern(path).and_then(|pattern| ROUTES.iter().find(|(path, _, _)| *path == pattern));
    let Some(&(pattern, methods, probe)) = known else { return Err(unknown_path(path, probes_only)) };
    if probes_only && !probe {
        let detail = format!("this replica has the role worker: it serves {}", known_paths(true));
        return Err(Problem::new(Kind::NotFound, detail));
    }
    if !methods.split(", ").any(|allowed| allowed == method) {
        let detail = format!("{pattern} takes {methods}");
        return Err(Problem::new(Kind::MethodNotAllowed, detail).with_header("Allow", methods));
    }

    route(pattern, path)
}

/// The documented form of a path that has the shape of a route.
fn pattern(path: &str) -> Option<&'static str> {
    let mut parts = path.strip_prefix('/')?.split('/');
    match (parts.next()?, parts.next(), parts.next(), parts.next()) {
        ("jobs", Some(_), None, None) => Some("/jobs/{id}"),
        ("jobs", Some(_), Some("cancel"), None) => Some("/jobs/{id}/cancel"),
        ("failed-jobs", Some(_), Some("retry"), None) => Some("/failed-jobs/{id}/retry"),
        _ => ROUTES.iter().map(|(known, _, _)| *known).find(|known| *known == path),
    }
}

fn route(pattern: &str, path: &str) -> Result<Route, Problem> {
    Ok(match pattern {
        "/enqueue" => Route::Enqueue,
        "/getAllJobs" => Route::Jobs,
        "/jobs/{id}" => Route::Job(id(path)?),
        "/jobs/{id}/cancel" => Route::Cancel(id(path)?),
        "/failed-jobs" => Route::DeadLetters,
        "/failed-jobs/{id}/retry" => Route::Revive(id(path)?),
        "/scheduler/wake" => Route::Wake,
        "/healthz" => Route::Health,
        "/readyz" => Route::Ready,
        "/metrics" => Route::Metrics,
        "/openapi.json" => Route::OpenApi,
        _ => return Err(unknown_path(path, false)),
    })
}

/// The id in the second part of a path.
fn id(path: &str) -> Result<Uuid, Problem> {
    let text = path.split('/').nth(2).unwrap_or_default();
    Uuid::try_parse(text).map_err(|_| {
        Problem::new(
            Kind::NotFound,
            format!("{text:?} is no id: an id is a UUID such as {}", Uuid::from_u128(0x123_4567)),
        )
    })
}

fn unknown_path(path: &str, probes_only: bool) -> Problem {
    Problem::new(Kind::NotFound, format!("there is no {path:?}; known are {}", known_paths(probes_only)))
}

fn known_paths(probes_only: bool) -> String {
    let known: Vec<&str> =
        ROUTES.iter().filter(|(_, _, probe)| *probe || !probes_only).map(|(path, _, _)| *path).collect();
    known.join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::message::{Answer, Body};
    use super::*;

    const ID: &str = "018f0000-0000-7000-8000-000000000001";

    fn found(path: &str, method: &str) -> Route {
        find(path, method, false).expect("a route")
    }

    fn refused(path: &str, method: &str, probes_only: bool) -> (u16, Vec<(&'static str, String)>, String) {
        let answer: Answer = find(path, method, probes_only).expect_err("no route").into();
        let Body::Whole(body) = answer.body else { panic!("a problem is whole") };
        (answer.status, answer.headers, String::from_utf8(body).expect("text"))
    }

    #[test]
    fn every_documented_route_is_found_with_each_of_its_methods() {
        for (path, methods, _) in ROUTES {
            for method in methods.split(", ") {
                assert!(find(&path.replace("{id}", ID), method, false).is_ok(), "{method} {path}");
            }
        }
        let id = ID.parse().expect("a UUID");
        assert_eq!(found(&format!("/jobs/{ID}"), "HEAD"), Route::Job(id));
        assert_eq!(found(&format!("/failed-jobs/{ID}/retry"), "POST"), Route::Revive(id));
    }

    #[test]
    fn a_wrong_method_is_405_with_allow() {
        let (status, headers, body) = refused("/enqueue", "GET", false);

        assert_eq!(status, 405);
        assert!(headers.contains(&("Allow", "POST".to_owned())));
        assert!(body.contains("/enqueue takes POST"), "{body}");
    }

    #[test]
    fn an_unknown_path_is_404_and_names_the_known_ones() {
        for path in ["/", "/enqueue/", "/getalljobs", "/jobs", "/jobs/{id}", "/jobs/1/2/3", "/failed-jobs/x", "*", ""] {
            let (status, _, body) = refused(path, "GET", false);

            assert_eq!(status, 404, "{path}");
            assert!(body.contains("known are") == (path != "/jobs/{id}"), "{body}");
        }
    }

    #[test]
    fn a_replica_of_the_role_worker_has_only_the_probes_and_metrics() {
        for (path, methods, probe) in ROUTES {
            let found = find(&path.replace("{id}", ID), methods.split(", ").next().expect("one"), true);

            assert_eq!(found.is_ok(), probe, "{path}");
        }
        assert!(refused("/enqueue", "POST", true).2.contains("role worker"));
    }

    #[test]
    fn a_target_is_split_also_where_a_proxy_sends_the_whole_url() {
        assert_eq!(split_target("/a?b=c?d"), ("/a", "b=c?d"));
        assert_eq!(split_target("/a"), ("/a", ""));
        assert_eq!(split_target("http://host:80/a?b"), ("/a", "b"));
        assert_eq!(split_target("https://host"), ("/", ""));
    }
}
