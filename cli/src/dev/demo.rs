//! The example app under `atoll dev --demo`: the manifest is the example's own, its program is run by
//! this one, so that a single binary is enough.

use super::layout::Layout;
use crate::api::Api;
use crate::commands::watch;
use crate::failure::{Failure, Outcome};
use crate::out;
use atoll_model::manifest::{self, CompiledApp};
use atoll_model::{RegionName, Scale};
use std::collections::BTreeMap;
use std::path::Path;

const MANIFEST: &str = include_str!("../../../examples/shop/atoll.toml");
/// The most that a region that the example doesn't name may scale to.
const OTHER: Scale = Scale { min: 1, max: 3 };

/// Deploys the example in every region, and waits until it serves.
pub async fn deploy(api: &Api, layout: &Layout, program: &Path, data: &Path) -> Outcome {
    let regions = layout.regions();
    let app = app(&regions, program, data)?;
    out::note(&format!("deploying the example app {}", app.app));
    watch::deploy_quietly(api, &app).await
}

fn app(regions: &[RegionName], program: &Path, data: &Path) -> Outcome<CompiledApp> {
    let manifest = manifest::parse(MANIFEST, "examples/shop/atoll.toml", data).map_err(|errors| {
        Failure::failed("the example's manifest is not valid").details(errors.iter().map(ToString::to_string))
    })?;
    let mut app = manifest.compile();
    for spec in app.services.values_mut() {
        let ours = [program.display().to_string().replace('$', "$$"), "demo-shop".to_owned()];
        spec.run = ours.into_iter().chain(spec.run.drain(..).skip(1)).collect();
        let scale = |region: &RegionName| spec.regions.get(region).copied().unwrap_or(OTHER);
        let scaled: BTreeMap<RegionName, Scale> =
            regions.iter().map(|region| (region.clone(), scale(region))).collect();
        spec.regions = scaled;
    }
    Ok(app)
}

/// The example's server (`atoll demo-shop web|api --listen ADDRESS:PORT`).
pub fn serve(args: Vec<String>) -> Outcome {
    atoll_example_shop::run(args.into_iter())
        .map_err(|error| Failure::failed(format!("the example ended: {error:#}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_example_runs_in_the_regions_that_there_are() {
        let regions = [RegionName::new("fra").unwrap(), RegionName::new("lon").unwrap()];
        let app = app(&regions, Path::new("/bin/atoll"), Path::new("/data")).unwrap();
        let web = &app.services["web"];
        assert_eq!(web.run[..3], ["/bin/atoll", "demo-shop", "web"]);
        assert_eq!(web.regions.len(), 2);
        assert_eq!(web.regions["lon"], OTHER);
        assert_eq!(app.host_labels()["web"], "shop");
    }
}
