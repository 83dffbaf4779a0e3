//! Whole-system tests: each file of `tests/` starts `atoll dev` on free ports and uses real clients.
//! A start takes seconds, so that each file has one platform and one test, whose steps say what they
//! show. What the files share with other tests is in `atoll-testkit`.

/// A manifest of the example's web service: an app's name, and instances by region. `$SHOP` stands for
/// the program.
#[must_use]
pub fn shop_manifest(app: &str, regions: &[(&str, u32)]) -> String {
    let regions: String = regions
        .iter()
        .map(|(region, min)| format!("{region} = {{ min = {min}, max = {} }}\n", min + 4))
        .collect();
    format!(
        r#"manifest = 1
app = "{app}"

[regions]
{regions}
[service.web]
run = ["$SHOP", "web", "--listen", "127.0.0.1:$PORT"]
public = true
drain = "5s"

[[service.web.check]]
kind = "http"
path = "/healthz"
every = "200ms"
timeout = "1s"
down = 2
"#
    )
}

/// The same with a private service `api` beside it.
#[must_use]
pub fn shop_manifest_with_api(app: &str, regions: &[(&str, u32)]) -> String {
    shop_manifest(app, regions)
        + r#"
[service.api]
run = ["$SHOP", "api", "--listen", "127.0.0.1:$PORT"]
public = false
"#
}

/// A manifest of any public program in one region, healthy once its port accepts.
#[must_use]
pub fn program_manifest(app: &str, region: &str, run: &[&str]) -> String {
    let run: Vec<String> = run.iter().map(|word| format!("{word:?}")).collect();
    format!(
        r#"manifest = 1
app = "{app}"

[regions]
{region} = {{ min = 1 }}

[service.web]
run = [{}]
public = true
drain = "1s"
"#,
        run.join(", ")
    )
}
