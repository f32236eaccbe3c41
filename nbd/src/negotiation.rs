//! The decisions of the handshake, as a state machine without I/O: options in, replies out.
//!
//! It holds what a client has agreed on so far. Reading options, their limits in bytes and time, and sending the
//! replies are the shell's matter ([`crate::handshake`]).

use bytes::{BufMut, BytesMut};

use crate::{
    contexts::{self, ContextSet},
    export::{Context, ExportInfo},
    geometry::Geometry,
    wire::{self, InfoRequest, codes::*},
};

/// Zeroes after the reply to `OPT_EXPORT_NAME` for clients that did not ask to be spared them.
const EXPORT_NAME_PADDING_BYTES: usize = 124;

/// What follows after an option.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Send the replies and read the next option.
    Continue,
    /// Send the replies; the transmission phase begins.
    Enter(Agreement),
    /// Send the replies and close the connection.
    Close,
}

/// What client and server have agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Agreement {
    /// Which of the server's exports.
    pub(crate) export: usize,
    pub(crate) geometry: Geometry,
    pub(crate) structured: bool,
    pub(crate) contexts: ContextSet,
}

/// One client's handshake.
pub(crate) struct Negotiation {
    /// All exports in the server's order, as they were when the client came.
    exports: Vec<ExportInfo>,
    fixed: bool,
    no_zeroes: bool,
    structured: bool,
    /// Contexts hold only for the export that they were chosen for.
    chosen: Option<(usize, ContextSet)>,
}

impl Negotiation {
    /// Begins after the client has sent its flags.
    pub(crate) fn new(exports: Vec<ExportInfo>, client_flags: u32) -> Self {
        Self {
            exports,
            fixed: client_flags & FLAG_C_FIXED_NEWSTYLE != 0,
            no_zeroes: client_flags & FLAG_C_NO_ZEROES != 0,
            structured: false,
            chosen: None,
        }
    }

    /// Takes one option with all of its data and appends the replies to `out`.
    pub(crate) fn handle(&mut self, option: u32, data: &[u8], out: &mut BytesMut) -> Step {
        if !self.fixed && option != OPT_EXPORT_NAME {
            // Such a client understands no replies to options.
            return Step::Close;
        }
        match option {
            OPT_EXPORT_NAME => return self.export_name(data, out),
            OPT_ABORT => {
                wire::encode_option_reply(out, option, REP_ACK, &[]);
                return Step::Close;
            }
            OPT_GO | OPT_INFO => return self.info(option, data, out),
            OPT_LIST => self.list(data, out),
            OPT_STRUCTURED_REPLY => self.structured_reply(data, out),
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => self.meta(option, data, out),
            _ => refuse(out, option, REP_ERR_UNSUP, "this option is not supported"),
        }
        Step::Continue
    }

    /// Answers an option whose data was too long to be kept.
    pub(crate) fn too_big(&self, option: u32, out: &mut BytesMut) -> Step {
        if !self.fixed || option == OPT_EXPORT_NAME {
            return Step::Close;
        }
        refuse(out, option, REP_ERR_TOO_BIG, "the option's data is too long");
        Step::Continue
    }

    fn export_name(&self, data: &[u8], out: &mut BytesMut) -> Step {
        // This option has no error reply: the protocol wants the connection closed.
        let Some(agreement) = std::str::from_utf8(data).ok().and_then(|name| self.agree(name)) else {
            return Step::Close;
        };
        out.put_u64(agreement.geometry.size_bytes);
        out.put_u16(agreement.geometry.transmission_flags(self.structured));
        if !self.no_zeroes {
            out.put_bytes(0, EXPORT_NAME_PADDING_BYTES);
        }
        Step::Enter(agreement)
    }

    fn list(&self, data: &[u8], out: &mut BytesMut) {
        if !data.is_empty() {
            return refuse(out, OPT_LIST, REP_ERR_INVALID, "LIST takes no data");
        }
        for export in &self.exports {
            let name = cut(&export.name);
            let mut item = BytesMut::new();
            item.put_u32(u32::try_from(name.len()).unwrap_or(STRING_BYTES_MAX));
            item.put_slice(name.as_bytes());
            item.put_slice(cut(&export.description).as_bytes());
            wire::encode_option_reply(out, OPT_LIST, REP_SERVER, &item);
        }
        wire::encode_option_reply(out, OPT_LIST, REP_ACK, &[]);
    }

    fn structured_reply(&mut self, data: &[u8], out: &mut BytesMut) {
        if !data.is_empty() {
            return refuse(out, OPT_STRUCTURED_REPLY, REP_ERR_INVALID, "STRUCTURED_REPLY takes no data");
        }
        self.structured = true;
        wire::encode_option_reply(out, OPT_STRUCTURED_REPLY, REP_ACK, &[]);
    }

    fn info(&self, option: u32, data: &[u8], out: &mut BytesMut) -> Step {
        let request = match wire::decode_info(data) {
            Ok(request) => request,
            Err(error) => {
                refuse(out, option, REP_ERR_INVALID, &error.to_string());
                return Step::Continue;
            }
        };
        let Some(agreement) = self.agree(request.export) else {
            refuse(out, option, REP_ERR_UNKNOWN, "there is no such export");
            return Step::Continue;
        };
        self.describe(option, &request, &agreement, out);
        if option == OPT_INFO {
            wire::encode_option_reply(out, option, REP_ACK, &[]);
            return Step::Continue;
        }
        if agreement.geometry.min_block > 1 && !request.block_size {
            refuse(
                out,
                option,
                REP_ERR_BLOCK_SIZE_REQD,
                "the export needs aligned requests: ask for block sizes",
            );
            return Step::Continue;
        }
        wire::encode_option_reply(out, option, REP_ACK, &[]);
        Step::Enter(agreement)
    }

    fn describe(&self, option: u32, request: &InfoRequest<'_>, agreement: &Agreement, out: &mut BytesMut) {
        let geometry = &agreement.geometry;
        let mut info = |kind: u16, fill: &dyn Fn(&mut BytesMut)| {
            let mut data = BytesMut::new();
            data.put_u16(kind);
            fill(&mut data);
            wire::encode_option_reply(out, option, REP_INFO, &data);
        };
        info(INFO_EXPORT, &|data| {
            data.put_u64(geometry.size_bytes);
            data.put_u16(geometry.transmission_flags(self.structured));
        });
        if let Some(export) = self.exports.get(agreement.export) {
            if request.name {
                info(INFO_NAME, &|data| data.put_slice(cut(&export.name).as_bytes()));
            }
            if request.description {
                info(INFO_DESCRIPTION, &|data| data.put_slice(cut(&export.description).as_bytes()));
            }
        }
        // Sent even when not asked for, as the protocol allows: some clients use it all the same.
        info(INFO_BLOCK_SIZE, &|data| {
            data.put_u32(geometry.min_block);
            data.put_u32(geometry.preferred_block);
            data.put_u32(geometry.max_block);
        });
    }

    fn meta(&mut self, option: u32, data: &[u8], out: &mut BytesMut) {
        let set = option == OPT_SET_META_CONTEXT;
        if set {
            // Whatever comes of it, an earlier choice is void.
            self.chosen = None;
        }
        if !self.structured {
            return refuse(out, option, REP_ERR_INVALID, "metadata contexts need structured replies");
        }
        let query = match wire::decode_meta(data) {
            Ok(query) => query,
            Err(error) => return refuse(out, option, REP_ERR_INVALID, &error.to_string()),
        };
        let Some(export) = self.find(query.export) else {
            return refuse(out, option, REP_ERR_UNKNOWN, "there is no such export");
        };
        let wanted = |context: &Context| {
            if set {
                query.queries.iter().any(|text| *text == context.name())
            } else {
                query.queries.is_empty() || query.queries.iter().any(|text| context.is_listed_by(text))
            }
        };
        let mut chosen = ContextSet::default();
        for context in contexts::ALL.into_iter().filter(wanted) {
            chosen.insert(context);
            let mut item = BytesMut::new();
            item.put_u32(if set { context.id() } else { 0 });
            item.put_slice(context.name().as_bytes());
            wire::encode_option_reply(out, option, REP_META_CONTEXT, &item);
        }
        if set {
            self.chosen = Some((export, chosen));
        }
        wire::encode_option_reply(out, option, REP_ACK, &[]);
    }

    fn agree(&self, name: &str) -> Option<Agreement> {
        let export = self.find(name)?;
        let geometry = Geometry::of(self.exports.get(export)?);
        let contexts = match self.chosen {
            Some((chosen_for, contexts)) if chosen_for == export => contexts,
            _ => ContextSet::default(),
        };
        Some(Agreement { export, geometry, structured: self.structured, contexts })
    }

    /// The export of that name; the first one if the name is empty.
    fn find(&self, name: &str) -> Option<usize> {
        let named = self.exports.iter().position(|export| export.name == name);
        named.or_else(|| (name.is_empty() && !self.exports.is_empty()).then_some(0))
    }
}

fn refuse(out: &mut BytesMut, option: u32, reply: u32, why: &str) {
    wire::encode_option_reply(out, option, reply, why.as_bytes());
}

/// At most as much of `text` as the protocol allows in a string.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(STRING_BYTES_MAX as usize);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiation(exports: Vec<ExportInfo>) -> Negotiation {
        Negotiation::new(exports, FLAG_C_FIXED_NEWSTYLE | FLAG_C_NO_ZEROES)
    }

    #[test]
    fn without_exports_nothing_is_found() {
        let mut out = BytesMut::new();
        assert_eq!(negotiation(vec![]).handle(OPT_EXPORT_NAME, b"", &mut out), Step::Close);
        assert_eq!(negotiation(vec![]).handle(OPT_GO, b"\0\0\0\0\0\0", &mut out), Step::Continue);
    }

    #[test]
    fn an_export_that_is_named_nothing_comes_before_the_first() {
        let exports = ["first", ""].map(|name| ExportInfo { name: name.into(), ..ExportInfo::default() });
        assert_eq!(negotiation(exports.to_vec()).find(""), Some(1));
        assert_eq!(negotiation(exports[..1].to_vec()).find(""), Some(0));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let text = format!("a{}", "ä".repeat(4000));
        assert_eq!(cut(&text).len(), 4095);
        assert_eq!(cut("short"), "short");
    }
}
