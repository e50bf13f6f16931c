//! The file `.env`, and the settings in it: whatever they are, they are read or refused, and no secret is shown.
#![no_main]

use std::sync::Once;

use libfuzzer_sys::fuzz_target;
use trilane::config::{Settings, url_without_secrets};

fuzz_target!(|text: &str| {
    static FOLDER: Once = Once::new();
    FOLDER.call_once(|| {
        let folder = std::env::temp_dir().join(format!("trilane-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the file");
        std::env::set_current_dir(folder).expect("it is there");
    });
    std::fs::write(".env", text).expect("the file can be written");

    if let Err(error) = Settings::environment() {
        assert!(error.problems().iter().all(|problem| problem.value.is_none()), "{error}");
    }
    match Settings::load() {
        Ok(settings) => {
            let shown = format!("{settings:?}");
            let secrets = settings.api_tokens.iter().chain(&settings.redis_url);
            for secret in secrets.filter(|secret| secret.expose().len() > 20) {
                assert!(!shown.contains(secret.expose()), "{shown}");
            }
        }
        Err(error) => assert!(!error.problems().is_empty() && !error.to_string().is_empty()),
    }
    let _ = url_without_secrets(text);
});
