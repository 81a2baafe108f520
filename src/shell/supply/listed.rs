//! The published builds of ONNX Runtime that this program knows, with the SHA-256 of every library in them.
//! Wheels for different Pythons hold the same libraries, so these are listed and not the wheels.

/// A build of ONNX Runtime, by the name of its wheel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Build {
    /// Kernels for the CPU alone.
    Cpu,
    /// With the provider for Huawei's CANN.
    Cann,
}

impl Build {
    /// Both, the first as fits every box.
    pub const ALL: [Self; 2] = [Self::Cpu, Self::Cann];

    /// What PyPI calls the wheel; the folder below the state directory begins with it.
    pub fn package(self) -> &'static str {
        match self {
            Self::Cpu => "onnxruntime",
            Self::Cann => "onnxruntime-cann",
        }
    }

    /// The version that is fetched where none is named.
    pub fn version(self) -> &'static str {
        match self {
            Self::Cpu => "1.32.0",
            Self::Cann => "1.24.4",
        }
    }

    /// The build that these libraries are of.
    pub(super) fn of(libraries: &[String]) -> Self {
        if libraries.iter().any(|name| name == CANN_LIBRARY) { Self::Cann } else { Self::Cpu }
    }
}

/// The library that makes a build one for CANN.
const CANN_LIBRARY: &str = "libonnxruntime_providers_cann.so";

/// All libraries of one build for one architecture: names and SHA-256.
pub(super) struct Listed {
    pub build: Build,
    pub version: &'static str,
    pub arch: &'static str,
    pub libraries: &'static [(&'static str, &'static str)],
}

/// Computed from the wheels that PyPI publishes, named with their own SHA-256.
pub(super) const LISTED: [Listed; 4] = [
    // onnxruntime-1.32.0-cp311-cp311-manylinux_2_28_x86_64.whl
    // 5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d
    Listed {
        build: Build::Cpu,
        version: "1.32.0",
        arch: "x86_64",
        libraries: &[
            (
                "libonnxruntime.so.1.32.0",
                "6c1585d1bbf45b0712ea4a21b705c5fcb4ba04ff2e30f1fbf81a49faf658638f",
            ),
            (
                "libonnxruntime_providers_shared.so",
                "8ef51f6bf2c621fc129f625b22241fa6f9a5870bc08eaf2fdd279169ec40d09a",
            ),
        ],
    },
    // onnxruntime-1.32.0-cp311-cp311-manylinux_2_28_aarch64.whl
    // 2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c
    Listed {
        build: Build::Cpu,
        version: "1.32.0",
        arch: "aarch64",
        libraries: &[
            (
                "libonnxruntime.so.1.32.0",
                "49852228a93995158b2a813d4df487d47a1b76b0eaa894507ef49e91b6d7954a",
            ),
            (
                "libonnxruntime_providers_shared.so",
                "f91fa2b0a2b8dba9cbc319254d342fa8201fd94b5912b9ce717f82e2207ee3d5",
            ),
        ],
    },
    // onnxruntime_cann-1.24.4-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl
    // 6813780ee96892f5c1bd3e05390f821016eb73e599264bd69807a83010a7abbe
    Listed {
        build: Build::Cann,
        version: "1.24.4",
        arch: "x86_64",
        libraries: &[
            (
                "libonnxruntime.so.1.24.4",
                "7e8487941e0303db738934b08b3d822de665165fec01fffa30de16f2d2fbcb73",
            ),
            (CANN_LIBRARY, "0130907b339217c8542597b8f5681ffda7a05ae5f5c59ec64ff2630edf733830"),
            (
                "libonnxruntime_providers_shared.so",
                "37559815dd2ff7a41609d685454e2a42826156c6cd95a33d7aba6dab59de7eff",
            ),
        ],
    },
    // onnxruntime_cann-1.24.4-cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl
    // acb52f29066fab2d073161b984fe48eadeaac6b2bbfd0735ab9dae579ec8b21a
    Listed {
        build: Build::Cann,
        version: "1.24.4",
        arch: "aarch64",
        libraries: &[
            (
                "libonnxruntime.so.1.24.4",
                "05413d233a76bf017641577664171655cbf7e545028bf838cde71d86b41c2386",
            ),
            (CANN_LIBRARY, "6f74eb54ecdca16a990ecbbcd8f2d586e4a0e82f71133ca8bdc560cc13b646b1"),
            (
                "libonnxruntime_providers_shared.so",
                "2bd77346dee85d0f4361b0f74e1233da4edd17bba0caec36e6e1f71842f49064",
            ),
        ],
    },
];

/// What is listed of a build for this machine.
pub(super) fn listed(build: Build, version: &str) -> Option<&'static Listed> {
    let here = |one: &&Listed| {
        one.build == build && one.version == version && one.arch == std::env::consts::ARCH
    };
    LISTED.iter().find(here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_build_is_listed_for_both_architectures_with_whole_hashes() {
        for build in Build::ALL {
            for arch in ["x86_64", "aarch64"] {
                let of = |one: &&Listed| (one.build, one.arch) == (build, arch);
                let found = LISTED.iter().find(of).unwrap();
                assert_eq!(found.version, build.version());
                let names: Vec<String> =
                    found.libraries.iter().map(|(name, _)| (*name).to_owned()).collect();
                assert_eq!(Build::of(&names), build);
                assert!(names.contains(&format!("libonnxruntime.so.{}", found.version)));
                for (name, hash) in found.libraries {
                    let digit = |c: char| matches!(c, '0'..='9' | 'a'..='f');
                    assert!(hash.len() == 64 && hash.chars().all(digit), "{name}");
                }
            }
        }
        let mut all: Vec<_> =
            LISTED.iter().flat_map(|one| one.libraries).map(|(_, hash)| hash).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 10, "two files have one hash");
    }
}
