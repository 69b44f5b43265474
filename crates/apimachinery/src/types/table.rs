//! Reads the table of built-in types.

use std::collections::HashMap;

use super::{Field, Kinds, ListKind, ListType, MapType, Node, Scalar, TypeId, Types};

/// The table; its head explains the format.
pub(super) const BUILTIN: &str = include_str!("builtin.txt");

struct Reader<'a> {
    types: Types,
    structs: HashMap<&'a str, TypeId>,
    /// defaults of list keys: (struct, field) -> default
    defaults: HashMap<(&'a str, &'a str), &'a str>,
    /// atomic copies of structs, to be filled when all are read
    copies: Vec<(TypeId, TypeId)>,
}

/// Types and the roots of kinds, by apiVersion and kind.
pub(super) fn parse(text: &str) -> (Types, Kinds) {
    let mut reader = Reader {
        types: Types::default(),
        structs: HashMap::new(),
        defaults: HashMap::new(),
        copies: Vec::new(),
    };
    let mut kinds = HashMap::new();
    let mut current = "";
    // list keys may refer to defaults of structs that come later
    for line in text.lines() {
        let mut words = line.split(' ');
        match words.next() {
            Some(">") => current = words.next().unwrap_or_default(),
            Some(field) => {
                if let Some(default) = words.find_map(|word| word.strip_prefix("d=")) {
                    reader.defaults.insert((current, field), default);
                }
            }
            None => {}
        }
    }
    let mut fields = MapType::default();
    let mut id = None;
    for line in text.lines() {
        let mut words = line.split(' ');
        match words.next() {
            None | Some("#" | "") => {}
            Some("=") => {
                let (api_version, kind) =
                    (words.next().unwrap_or_default(), words.next().unwrap_or_default());
                let root = reader.structure(words.next().unwrap_or_default());
                kinds.insert((api_version.to_owned(), kind.to_owned()), root);
            }
            Some(">") => {
                reader.finish(id, &mut fields);
                id = Some(reader.structure(words.next().unwrap_or_default()));
                fields.atomic = words.next() == Some("atomic");
            }
            Some(name) => {
                let ty = words.next().unwrap_or_default();
                let flags: Vec<&str> = words.collect();
                let field = reader.field(ty, &flags);
                fields.fields.insert(name.to_owned(), field);
            }
        }
    }
    reader.finish(id, &mut fields);
    for (copy, original) in std::mem::take(&mut reader.copies) {
        if let Node::Map(map) = reader.types.node(original).clone() {
            reader.types.set(copy, Node::Map(MapType { atomic: true, ..map }));
        }
    }
    (reader.types, kinds)
}

/// The types of `metadata` alone, and its root.
pub(super) fn metadata() -> (Types, TypeId) {
    let end = BUILTIN.find("> ObjectMeta\n").map_or(0, |start| {
        BUILTIN[start + 1..].find("\n> ").map_or(BUILTIN.len(), |length| start + 1 + length)
    });
    let start = BUILTIN.find("\n> ").map_or(0, |at| at + 1);
    let text = format!("= v1 Meta ObjectMeta\n{}", &BUILTIN[start..end.max(start)]);
    let (types, kinds) = parse(&text);
    let root = kinds.values().next().copied().unwrap_or(TypeId(0));
    (types, root)
}

impl<'a> Reader<'a> {
    fn structure(&mut self, name: &'a str) -> TypeId {
        if let Some(id) = self.structs.get(name) {
            return *id;
        }
        let id = self.types.add(Node::Any);
        self.structs.insert(name, id);
        id
    }

    fn finish(&mut self, id: Option<TypeId>, fields: &mut MapType) {
        let map = std::mem::take(fields);
        if let Some(id) = id {
            self.types.set(id, Node::Map(map));
        }
    }

    fn field(&mut self, ty: &'a str, flags: &[&str]) -> Field {
        let flag = |prefix: &str| flags.iter().find_map(|flag| flag.strip_prefix(prefix));
        let has = |name: &str| flags.contains(&name);
        let id = match ty.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(item) => {
                let keys = flag("m=").map(|keys| {
                    let key = |key: &str| {
                        (key.to_owned(), self.defaults.get(&(item, key)).map(|d| (*d).to_owned()))
                    };
                    keys.split(',').map(key).collect()
                });
                let kind = match keys {
                    Some(keys) => ListKind::Map(keys),
                    None if has("set") => ListKind::Set,
                    None => ListKind::Atomic,
                };
                let item = self.type_of(item);
                self.types.add(Node::List(ListType { item, kind }))
            }
            None => self.type_of(ty),
        };
        let id = if has("a") { self.atomic(id) } else { id };
        let merge_key = flag("p=").map(str::to_owned).or(has("p").then(String::new));
        Field { ty: id, always: has("!"), pointer: has("?"), merge_key }
    }

    fn atomic(&mut self, original: TypeId) -> TypeId {
        let copy = self.types.add(self.types.node(original).clone());
        self.copies.push((copy, original));
        copy
    }

    fn type_of(&mut self, ty: &'a str) -> TypeId {
        if let Some(item) = ty.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let item = self.type_of(item);
            return self.types.add(Node::List(ListType { item, kind: ListKind::Atomic }));
        }
        if let Some(value) = ty.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            let extra = Some(self.type_of(value));
            return self.types.add(Node::Map(MapType { extra, ..MapType::default() }));
        }
        let scalar = match ty {
            "s" => Scalar::String,
            "i" => Scalar::Integer,
            "f" => Scalar::Number,
            "b" => Scalar::Boolean,
            "q" => Scalar::Quantity,
            "t" => Scalar::Time,
            "x" => Scalar::IntOrString,
            "*" => return self.types.add(Node::Any),
            name => return self.structure(name),
        };
        self.types.add(Node::Scalar(scalar))
    }
}
