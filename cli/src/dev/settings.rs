//! What the user asked `atoll dev` for, checked.

use crate::args::DevArgs;
use crate::failure::{self, Failure, Outcome};
use crate::out;
use atoll_model::RegionName;
use atoll_model::manifest::parse_duration_ms;
use atoll_process::files;
use std::path::{Path, PathBuf};

/// Each region needs a loopback address of its own and three processes.
const REGIONS_MAX: usize = 16;
/// A unix socket's path has at most 107 bytes; what is appended to the data folder takes up to 45. The
/// nodes work without their admin sockets, so that a longer path is said and not refused.
const SOCKET_DATA_BYTES_MAX: usize = 62;

/// Checked settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Absolute; exists, mode 0700.
    pub data: PathBuf,
    /// At least one, no two alike.
    pub regions: Vec<RegionName>,
    /// 0: free ones.
    pub https_port: u16,
    /// 0: free ones.
    pub http_port: u16,
    /// Deploy the example.
    pub demo: bool,
    /// Register the context `dev`.
    pub context: bool,
    /// Simulate distances.
    pub wan: bool,
    /// At each site.
    pub edges: usize,
    /// Of each edge and gateway; 0: the node's choice.
    pub workers: usize,
    /// Other than the default, s.
    pub node_certificate_s: Option<u64>,
    /// Other than the default, s.
    pub workload_certificate_s: Option<u64>,
}

impl Settings {
    /// Checks what was given, and makes the data folder.
    pub fn check(args: DevArgs) -> Outcome<Self> {
        let regions = regions(&args.regions)?;
        let life = |given: &Option<String>| given.as_deref().map(seconds).transpose();
        let (node_certificate_s, workload_certificate_s) =
            (life(&args.node_certificate_life)?, life(&args.workload_certificate_life)?);
        if args.https_port != 0 && args.https_port == args.http_port {
            return Err(Failure::usage(format!("HTTP and HTTPS can't share port {}", args.http_port))
                .fix("give another --http-port or --https-port"));
        }
        Ok(Self {
            data: data_folder(args.data)?,
            regions,
            https_port: args.https_port,
            http_port: args.http_port,
            demo: args.demo,
            context: !args.no_context,
            wan: args.wan,
            edges: usize::from(args.edges),
            workers: args.workers,
            node_certificate_s,
            workload_certificate_s,
        })
    }
}

fn regions(given: &[String]) -> Outcome<Vec<RegionName>> {
    let mut regions: Vec<RegionName> = Vec::new();
    for text in given {
        let region = RegionName::new(text.trim())
            .map_err(|error| Failure::usage(error.to_string()).place("--regions"))?;
        // A site is the region's name and a digit, and a node is the site's name and its role.
        if region.as_str().len() > 20 {
            return Err(Failure::usage(format!("`{region}` is too long for a region of `atoll dev`"))
                .place("--regions"));
        }
        if regions.contains(&region) {
            return Err(Failure::usage(format!("region `{region}` is given twice")).place("--regions"));
        }
        regions.push(region);
    }
    if regions.is_empty() || regions.len() > REGIONS_MAX {
        return Err(Failure::usage(format!("give 1 to {REGIONS_MAX} regions")).place("--regions"));
    }
    Ok(regions)
}

fn seconds(text: &str) -> Outcome<u64> {
    let ms = parse_duration_ms(text).map_err(|error| Failure::usage(error.to_string()))?;
    if ms < 2_000 {
        Err(Failure::usage("certificates must live for at least 2 seconds"))
    } else {
        Ok(ms / 1_000)
    }
}

fn data_folder(given: Option<PathBuf>) -> Outcome<PathBuf> {
    let folder = match given {
        Some(folder) => folder,
        None => state_folder()?.join("atoll").join("dev"),
    };
    let unusable = |error: std::io::Error| {
        failure::io(format!("cannot use {} as the data folder", folder.display()), &error)
            .fix("give a folder that you can write to with --data")
    };
    files::private_dir(&folder).map_err(unusable)?;
    let folder = folder.canonicalize().map_err(unusable)?;
    // A folder that exists may still be read-only; better said now than by ten nodes.
    check_writable(&folder).map_err(unusable)?;
    if folder.to_str().is_none() {
        return Err(Failure::usage("the data folder's path is not UTF-8")
            .place(folder.display().to_string())
            .fix("give another one with --data"));
    }
    if folder.as_os_str().len() > SOCKET_DATA_BYTES_MAX {
        out::note("note: the data folder's path is too long for the nodes' admin sockets; they go without");
    }
    Ok(folder)
}

/// Whether something can be written there.
fn check_writable(folder: &Path) -> std::io::Result<()> {
    let probe = folder.join(".writable");
    std::fs::write(&probe, b"")?;
    std::fs::remove_file(probe)
}

fn state_folder() -> Outcome<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local").join("state")))
        .ok_or_else(|| {
            Failure::usage("neither XDG_STATE_HOME nor HOME is set").fix("give a folder with --data")
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn regions_are_checked() {
        let names = |texts: &[&str]| regions(&texts.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(names(&["fra", " was"]).unwrap().len(), 2);
        for wrong in [&["fra", "fra"][..], &["Fra"], &[""], &[], &["a-name-that-is-far-too-long"]] {
            assert!(names(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_folder_is_made_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let data = data_folder(Some(folder.path().join("a/b"))).unwrap();
        assert!(data.is_absolute());
        assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
    }
}
