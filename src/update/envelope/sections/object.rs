//! Writes an object as text, field by field, without a tree in between: each update is
//! rewritten for its user.

use serde_json::value::RawValue;

use super::typing::display_name;
use crate::update::envelope::fields::Fields;

/// The text of an object that is being written.
pub(super) struct Object {
    text: Vec<u8>,
}

impl Object {
    pub(super) fn with_capacity(bytes: usize) -> Self {
        let mut text = Vec::with_capacity(bytes);
        text.push(b'{');
        Self { text }
    }

    pub(super) fn end(mut self) -> Vec<u8> {
        self.text.push(b'}');
        self.text
    }

    fn name(&mut self, name: &str) {
        if self.text.last() != Some(&b'{') {
            self.text.push(b',');
        }
        // Most names need no escapes, and so no serializer.
        if name
            .bytes()
            .all(|byte| !matches!(byte, 0..0x20 | b'"' | b'\\'))
        {
            self.text.push(b'"');
            self.text.extend(name.as_bytes());
            self.text.push(b'"');
        } else {
            self.string(name);
        }
        self.text.push(b':');
    }

    fn string(&mut self, text: &str) {
        serde_json::to_writer(&mut self.text, text).expect("a string is written to memory");
    }

    pub(super) fn raw(&mut self, name: &str, value: &RawValue) {
        self.name(name);
        self.text.extend(value.get().as_bytes());
    }

    pub(super) fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        self.string(value);
    }

    pub(super) fn object(&mut self, name: &str, write: impl FnOnce(&mut Self)) {
        self.name(name);
        self.text.push(b'{');
        write(self);
        self.text.push(b'}');
    }

    /// An object, or `null` where there is none.
    pub(super) fn section(
        &mut self,
        name: &str,
        section: Option<&Fields<'_>>,
        write: impl FnOnce(&mut Self, &Fields<'_>),
    ) {
        match section {
            Some(section) => self.object(name, |out| write(out, section)),
            None => self.raw(name, RawValue::NULL),
        }
    }

    /// A user, with a name where one is known.
    pub(super) fn user(&mut self, name: &str, value: &RawValue) {
        let user = Fields::parse(value).filter(|user| user.given("name").is_none());
        match user.and_then(|user| Some((display_name(&user)?, user))) {
            Some((display_name, user)) => self.object(name, |out| {
                out.all_but(&user, &["name"]);
                out.raw("name", display_name);
            }),
            None => self.raw(name, value),
        }
    }

    /// All fields but those that are left out.
    pub(super) fn all_but(&mut self, fields: &Fields<'_>, left_out: &[&str]) {
        for (name, value) in &fields.0 {
            if !left_out.contains(&&**name) {
                self.raw(name, value);
            }
        }
    }
}
