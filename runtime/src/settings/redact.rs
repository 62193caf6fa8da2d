//! Settings as they may be shown.
//! In: a setting with its value. Out: the value without its secrets.

/// The value of a setting as it may be shown: passwords in URLs, and settings named as secrets, become `***`.
pub fn redact(setting: &str, value: &str) -> String {
    let name = setting.rsplit('.').next().unwrap_or(setting);
    // The setting named tokens is the path of the file with their hashes.
    if name != "tokens" && ["password", "token", "secret"].iter().any(|word| name.contains(word)) {
        return "***".to_owned();
    }
    // A list of another program's settings: one that holds a secret is not shown at all.
    if name == "properties" && ["password", "secret", "pem", "token"].iter().any(|word| value.contains(word)) {
        return "***".to_owned();
    }
    let mut shown = value.to_owned();
    // Up to the last `@`: a password may hold any delimiter of URLs, and there may be several URLs.
    if let Some(start) = shown.find("://").map(|at| at + 3)
        && let Some(at) = shown[start..].rfind('@').map(|at| start + at)
        && let Some(colon) = shown[start..at].find(':').map(|colon| start + colon)
    {
        shown.replace_range(colon + 1..at, "***");
    }
    let mut from = 0;
    while let Some(equals) = shown[from..].find('=').map(|at| from + at + 1) {
        let named = shown[from..equals].to_lowercase();
        from = equals;
        if ["password", "secret", "token", "passwd"].iter().any(|word| named.contains(word)) {
            let end = shown[equals..].find(['&', '"', ',']).map_or(shown.len(), |at| equals + at);
            shown.replace_range(equals..end, "***");
        }
    }
    shown
}
