//! With whose eyes the rows of a statement are checked: what the user is tied to holds over what the statement says, and
//! that over what its session says.

use crate::model::{Recheck, Viewer};
use crate::server::http::recheck::Asked;
use crate::server::pg::User;
use crate::server::pg::settings::Settings;
use crate::server::problem::{self, Problem};
use serde_json::{Value as Json, json};

/// How sure the rows of a statement have to be, and with whose eyes they are checked. `said`: `recheck` of its options.
/// `usual`: the level where nobody says one. With a role the source is always asked; of a user who is tied to one it is asked
/// for everything, `exact`.
pub fn asked(said: Option<Json>, settings: &Settings, user: &User, usual: Recheck) -> Result<Asked, Problem> {
    let malformed = |error: serde_json::Error| Problem::new(problem::MALFORMED, format!("options: recheck: {error}"));
    let said: Option<Asked> = serde_json::from_value(said.unwrap_or_default()).map_err(malformed)?;
    let level = said.as_ref().map(|said| said.level).or(settings.recheck()).unwrap_or(usual);
    let of_session = || match (settings.recheck_role(), settings.recheck_settings()) {
        (Some(role), settings) => Ok(Some(Viewer { role: role.to_owned(), settings })),
        (None, settings) if settings.is_empty() || user.tie.is_some() => Ok(None),
        (None, _) => {
            let problem = Problem::new(problem::MALFORMED, "ruvector.recheck_settings without ruvector.recheck_role");
            Err(problem.hint("set both, or RESET ruvector.recheck_settings"))
        }
    };
    let viewer = match said.and_then(|said| said.viewer) {
        Some(viewer) => Some(viewer),
        None => of_session()?,
    };
    let Some(tie) = &user.tie else {
        let level = if viewer.is_some() && level == Recheck::None { Recheck::Exists } else { level };
        return Ok(Asked { level, viewer });
    };
    let refuse = |detail: String| {
        Err(Problem::new(problem::VIEWER, detail)
            .hint("sql.users of the service's configuration says what a user is tied to"))
    };
    let mut settings = match viewer {
        None => settings.recheck_settings(),
        Some(viewer) if viewer.role == tie.role => viewer.settings,
        Some(viewer) => {
            return refuse(format!("user {:?} asks as role {:?}, not as {:?}", user.name, tie.role, viewer.role));
        }
    };
    for (name, value) in &tie.settings {
        if settings.insert(name.clone(), value.clone()).is_some_and(|other| other != *value) {
            return refuse(format!("user {:?} asks with {name:?} as it is configured", user.name));
        }
    }
    Ok(Asked { level: Recheck::Exact, viewer: Some(Viewer { role: tie.role.clone(), settings }) })
}

/// As `recheck` of a body has it.
pub fn written(asked: Asked) -> Json {
    match asked.viewer {
        None => json!(asked.level),
        Some(Viewer { role, settings }) => json!({ "mode": asked.level, "as_role": role, "settings": settings }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn user(tie: Option<Viewer>) -> User {
        User { name: "u".into(), collections: None, tie }
    }

    fn viewer(role: &str, settings: &[(&str, &str)]) -> Viewer {
        let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Viewer { role: role.into(), settings }
    }

    fn session(set: &[(&str, &str)]) -> Settings {
        let set = set.iter().map(|(name, value)| (format!("ruvector.{name}"), (*value).to_owned()));
        Settings::new(&set.collect::<BTreeMap<_, _>>()).expect("settings")
    }

    #[test]
    fn a_statement_says_before_its_session_and_a_role_is_never_dropped() {
        let free = user(None);
        let role = session(&[("recheck_role", "a"), ("recheck_settings", r#"{"app.t": "7"}"#)]);
        let of_session = Some(viewer("a", &[("app.t", "7")]));
        for (said, set, usual, level, expected) in [
            (Json::Null, &session(&[]), Recheck::None, Recheck::None, None),
            (json!("exact"), &session(&[("recheck", "none")]), Recheck::Exists, Recheck::Exact, None),
            (Json::Null, &role, Recheck::None, Recheck::Exists, of_session.clone()),
            (json!("none"), &role, Recheck::None, Recheck::Exists, of_session.clone()),
            (json!("exact"), &role, Recheck::None, Recheck::Exact, of_session),
            (json!("role:b"), &role, Recheck::None, Recheck::Exists, Some(viewer("b", &[]))),
        ] {
            let found = asked(Some(said.clone()), set, &free, usual).expect("both are taken");
            assert_eq!(found, Asked { level, viewer: expected }, "{said}");
            let read: Asked = serde_json::from_value(written(found.clone())).expect("what is written is read");
            assert_eq!(read, found);
        }
        for said in [json!(5), json!({"as_role": "a", "mode": "none"}), json!({"role": "a"})] {
            assert!(asked(Some(said), &session(&[]), &free, Recheck::None).is_err());
        }
        let lone = session(&[("recheck_settings", r#"{"app.t": "7"}"#)]);
        assert!(asked(None, &lone, &free, Recheck::None).is_err());
    }

    #[test]
    fn nobody_leaves_what_he_is_tied_to() {
        let tied = user(Some(viewer("a", &[("app.t", "7")])));
        let own = Asked { level: Recheck::Exact, viewer: Some(viewer("a", &[("app.t", "7")])) };
        for (said, set) in [
            (Json::Null, session(&[])),
            (json!("none"), session(&[("recheck", "none")])),
            (json!("role:a"), session(&[("recheck_role", "a")])),
            (json!({"as_role": "a", "settings": {"app.t": "7"}}), session(&[])),
        ] {
            let found = asked(Some(said.clone()), &set, &tied, Recheck::None);
            assert_eq!(found.expect("its own role"), own, "{said}");
        }
        let more = session(&[("recheck_settings", r#"{"app.u": "1"}"#)]);
        let found = asked(None, &more, &tied, Recheck::None).expect("another setting").viewer.expect("its own");
        assert_eq!(found, viewer("a", &[("app.t", "7"), ("app.u", "1")]));
        for (said, set) in [
            (json!("role:b"), session(&[])),
            (Json::Null, session(&[("recheck_role", "b")])),
            (json!({"as_role": "a", "settings": {"app.t": "8"}}), session(&[])),
            (Json::Null, session(&[("recheck_settings", r#"{"app.t": "8"}"#)])),
        ] {
            let refused = asked(Some(said.clone()), &set, &tied, Recheck::None).expect_err("not its own");
            assert_eq!(refused.kind.sqlstate, "42501", "{said}");
        }
    }
}
