//! Renders the `<hostdev>` document of an attach from `xml-templates/`.
//!
//! minijinja renders the templates with XML escaping. Each rendered document is read back and compared with its spec. A
//! document that differs from the spec or adds another device is refused and never reaches libvirt.

use std::io;
use std::path::{Path, PathBuf};

use minijinja::{AutoEscape, Environment, UndefinedBehavior, Value, context};
use uuid::Uuid;

use super::rendered;
pub use super::spec::{HostdevSpec, InterfaceSpec, MdevSpec};
use crate::domain::UserAlias;
use crate::net::{MacAddress, VlanTag};
use crate::pci::PciAddress;

/// A device that can be plugged into a domain.
pub trait Pluggable: Sync {
    /// The alias that names it in the domain.
    fn alias(&self) -> UserAlias;

    /// The device's name on the host, for people.
    fn source(&self) -> String;

    /// Renders the document for libvirt.
    ///
    /// # Errors
    /// [`TemplateError::Render`] when the template cannot be rendered, and [`TemplateError::Mismatch`] when the
    /// rendered document differs from the spec.
    fn render(&self, templates: &Templates) -> Result<String, TemplateError>;
}

impl Pluggable for HostdevSpec {
    fn alias(&self) -> UserAlias {
        self.alias
    }

    fn source(&self) -> String {
        self.source.to_string()
    }

    fn render(&self, templates: &Templates) -> Result<String, TemplateError> {
        templates.render(self)
    }
}

impl Pluggable for MdevSpec {
    fn alias(&self) -> UserAlias {
        self.alias
    }

    fn source(&self) -> String {
        format!("mediated device {}", self.source)
    }

    fn render(&self, templates: &Templates) -> Result<String, TemplateError> {
        let context = context! {
            uuid => self.source.to_string(),
            alias => self.alias.to_string(),
            guest => self.guest.map(address),
        };
        let xml = templates.render_context(MDEV, context)?;
        templates.checked(MDEV, rendered::check_mdev(&xml, self)).map(|()| xml)
    }
}

/// The templates: those embedded in the binary, or overrides from a directory.
#[derive(Debug)]
pub struct Templates {
    environment: Environment<'static>,
    /// The names of the overridden templates, with their files.
    overrides: Vec<(&'static str, PathBuf)>,
}

/// The embedded templates, by file name.
const EMBEDDED: [(&str, &str); 3] = [
    (HOSTDEV, include_str!("../../../xml-templates/hostdev.xml")),
    (INTERFACE, include_str!("../../../xml-templates/interface.xml")),
    (MDEV, include_str!("../../../xml-templates/mdev.xml")),
];
const HOSTDEV: &str = "hostdev.xml";
const INTERFACE: &str = "interface.xml";
const MDEV: &str = "mdev.xml";

/// A problem with a template.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The override directory or a file in it cannot be read.
    #[error("{path}: {error}")]
    Read {
        /// The file or directory.
        path: String,
        /// The reason.
        error: io::Error,
    },
    /// A file in the override directory does not have the name of a template.
    #[error("{path}: unknown template; expected {HOSTDEV}, {INTERFACE} or {MDEV}")]
    Unknown {
        /// The file.
        path: String,
    },
    /// A template cannot be parsed or rendered.
    #[error("{file}:{line}: {reason}")]
    Render {
        /// The template's file.
        file: String,
        /// The line in it, from 1.
        line: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A rendered document differs from its spec.
    #[error("{file}: in the rendered document, {reason}")]
    Mismatch {
        /// The template's file.
        file: String,
        /// The difference, with the element and the line of the rendered document.
        reason: String,
    },
}

/// The variables of a template. Whether the template used them correctly is checked after rendering.
fn context(spec: &HostdevSpec) -> Value {
    let interface = spec.interface.as_ref();
    context! {
        source => address(spec.source),
        alias => spec.alias.to_string(),
        managed => if spec.managed { "yes" } else { "no" },
        rom_bar => spec.rom_bar.map(|bar| if bar { "on" } else { "off" }),
        guest => spec.guest.map(address),
        mac => interface.map(|interface| interface.mac.to_string()),
        vlan => interface.and_then(|interface| interface.vlan).map(VlanTag::get),
    }
}

/// The parts of an address as libvirt writes them: `domain='0x0000' bus='0x3b' slot='0x00' function='0x1'`.
fn address(address: PciAddress) -> Value {
    context! {
        domain => format!("{:#06x}", address.domain()),
        bus => format!("{:#04x}", address.bus()),
        slot => format!("{:#04x}", address.slot()),
        function => format!("{:#x}", address.function()),
    }
}

impl Templates {
    /// Loads the embedded templates; files in `overrides` replace templates of the same name. It renders and checks
    /// each template for every kind of attach. Files whose names begin with a dot are ignored.
    ///
    /// # Errors
    /// [`TemplateError`] when a file cannot be read or has an unknown name, or when a template does not pass the check.
    pub fn load(overrides: Option<&Path>) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| AutoEscape::Html);
        let overrides = overrides.map_or_else(|| Ok(Vec::new()), override_files)?;
        let mut templates = Self { environment, overrides };
        for (name, embedded) in EMBEDDED {
            let text = match templates.overrides.iter().find(|(overridden, _)| *overridden == name) {
                Some((_, path)) => std::fs::read_to_string(path).map_err(|error| read_error(path, error))?,
                None => embedded.to_owned(),
            };
            let added = templates.environment.add_template_owned(name, text);
            added.map_err(|error| templates.render_error(name, &error))?;
        }
        for spec in every_kind() {
            templates.render(&spec)?;
        }
        for spec in every_mdev() {
            spec.render(&templates)?;
        }
        Ok(templates)
    }

    /// Renders the document of one attach.
    ///
    /// # Errors
    /// [`TemplateError::Render`] when the template cannot be rendered, and [`TemplateError::Mismatch`] when the
    /// rendered document differs from the spec.
    pub fn render(&self, spec: &HostdevSpec) -> Result<String, TemplateError> {
        let name = if spec.interface.is_some() { INTERFACE } else { HOSTDEV };
        let xml = self.render_context(name, context(spec))?;
        self.checked(name, rendered::check(&xml, spec)).map(|()| xml)
    }

    fn checked(&self, name: &str, check: Result<(), String>) -> Result<(), TemplateError> {
        check.map_err(|reason| TemplateError::Mismatch { file: self.file(name), reason })
    }

    fn render_context(&self, name: &str, context: Value) -> Result<String, TemplateError> {
        let rendered = self.environment.get_template(name).and_then(|template| template.render(context));
        rendered.map_err(|error| self.render_error(name, &error))
    }

    fn render_error(&self, name: &str, error: &minijinja::Error) -> TemplateError {
        let detail = error.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
        TemplateError::Render {
            file: self.file(error.name().unwrap_or(name)),
            line: error.line().unwrap_or(1),
            reason: format!("{}{detail}", error.kind()),
        }
    }

    /// The path of an overridden template, or the name of an embedded one.
    fn file(&self, name: &str) -> String {
        let file = self.overrides.iter().find(|(overridden, _)| *overridden == name);
        file.map_or_else(|| name.to_owned(), |(_, path)| path.display().to_string())
    }
}

fn read_error(path: &Path, error: io::Error) -> TemplateError {
    TemplateError::Read { path: path.display().to_string(), error }
}

fn override_files(directory: &Path) -> Result<Vec<(&'static str, PathBuf)>, TemplateError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(|error| read_error(directory, error))? {
        let path = entry.map_err(|error| read_error(directory, error))?.path();
        let file_name = path.file_name().unwrap_or_default().to_string_lossy();
        if file_name.starts_with('.') {
            continue;
        }
        match EMBEDDED.iter().find(|(name, _)| *name == file_name) {
            Some((name, _)) => files.push((*name, path)),
            None => return Err(TemplateError::Unknown { path: path.display().to_string() }),
        }
    }
    Ok(files)
}

/// One spec for every kind of attach. Its values are unusual, so that a template that contains a constant instead of a
/// variable does not pass.
fn every_kind() -> impl Iterator<Item = HostdevSpec> {
    let source = PciAddress::new(0xface, 0xa5, 0x1b, 5);
    let guest = PciAddress::new(0, 0x6d, 0x1e, 0);
    let mac: Option<MacAddress> = "52:54:00:c0:ff:ee".parse().ok();
    let interface = |vlan| mac.map(|mac| InterfaceSpec { mac, vlan });
    let interfaces = [None, interface(None), interface(VlanTag::new(3210).ok())];
    let guests = [None, guest.ok()];
    let roms = [None, Some(true), Some(false)];
    let plain = source.into_iter().map(|source| HostdevSpec {
        source,
        alias: UserAlias(Uuid::from_u128(0x6ba7_b810_9dad_41d1_80b4_00c0_4fd4_30c8)),
        managed: true,
        rom_bar: None,
        guest: None,
        interface: None,
    });
    plain
        .flat_map(move |spec| interfaces.clone().map(|interface| HostdevSpec { interface, ..spec.clone() }))
        .flat_map(move |spec| guests.map(|guest| HostdevSpec { guest, ..spec.clone() }))
        .flat_map(move |spec| roms.map(|rom_bar| HostdevSpec { rom_bar, ..spec.clone() }))
        .flat_map(move |spec| [true, false].map(|managed| HostdevSpec { managed, ..spec.clone() }))
}

/// One spec for every kind of mediated-device attach.
fn every_mdev() -> impl Iterator<Item = MdevSpec> {
    let guests = [None, PciAddress::new(0, 0x6d, 0x1e, 0).ok()];
    guests.into_iter().map(|guest| MdevSpec {
        source: Uuid::from_u128(0x7d44_4840_9dc0_41d1_b245_5ffd_ce74_fad2),
        alias: UserAlias(Uuid::from_u128(0x6ba7_b810_9dad_41d1_80b4_00c0_4fd4_30c8)),
        guest,
    })
}

#[cfg(test)]
mod tests;
