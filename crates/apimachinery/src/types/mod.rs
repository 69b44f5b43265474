//! How objects are typed, as far as merging needs it: which lists are maps by which keys, which maps are
//! replaced as a whole. One form for built-in kinds (a committed table), CRDs (their structural schemas) and
//! kinds without a schema (`structured-merge-diff` v6 `schema`, `k8s.io/kube-openapi` `schemaconv`).

mod crd;
mod openapi;
mod round_trip;
mod table;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use crate::tree::{Map, Value};

pub use openapi::shared as shared_schemas;

/// A type in a [`Types`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TypeId(u32);

/// Types that refer to each other.
#[derive(Debug, Default)]
pub(crate) struct Types {
    nodes: Vec<Node>,
}

#[derive(Clone, Debug)]
pub(crate) enum Node {
    Scalar(Scalar),
    /// anything; what it is shows when a value is there
    Any,
    List(ListType),
    Map(MapType),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Scalar {
    String,
    Integer,
    Number,
    Boolean,
    Quantity,
    Time,
    IntOrString,
}

#[derive(Clone, Debug)]
pub(crate) struct ListType {
    pub item: TypeId,
    pub kind: ListKind,
}

#[derive(Clone, Debug)]
pub(crate) enum ListKind {
    Atomic,
    Set,
    /// keys, each with its default
    Map(Vec<(String, Option<String>)>),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct MapType {
    pub fields: HashMap<String, Field>,
    /// the type of values under other names; none: there are no other names
    pub extra: Option<TypeId>,
    pub atomic: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Field {
    pub ty: TypeId,
    /// written even when empty
    pub always: bool,
    /// may be empty and is kept then
    pub pointer: bool,
    /// strategic merge patch merges this list, by this key (`""`: a list of scalars)
    pub merge_key: Option<String>,
}

/// How a value is to be merged.
pub(crate) enum Shape<'a> {
    /// a scalar, or anything that is replaced as a whole
    Leaf,
    List(&'a ListType),
    Map(&'a MapType),
    /// a map of anything
    Deduced,
}

/// The type of a kind of object.
#[derive(Clone, Debug)]
pub struct ObjectType {
    pub(crate) types: Arc<Types>,
    pub(crate) root: TypeId,
    builtin: bool,
}

/// The roots of kinds, by apiVersion and kind.
type Kinds = HashMap<(String, String), TypeId>;

static BUILTIN: LazyLock<(Arc<Types>, Kinds)> = LazyLock::new(|| {
    let (types, kinds) = table::parse(table::BUILTIN);
    (Arc::new(types), kinds)
});

static SCHEMALESS: LazyLock<ObjectType> = LazyLock::new(|| crd::object_type(&Value::Null));

/// The fields of `metadata`.
pub(crate) fn metadata_fields() -> &'static HashMap<String, Field> {
    static FIELDS: LazyLock<HashMap<String, Field>> = LazyLock::new(|| {
        let (types, root) = table::metadata();
        match types.node(root) {
            Node::Map(map) => map.fields.clone(),
            _ => HashMap::new(),
        }
    });
    &FIELDS
}

impl ObjectType {
    /// The type of a built-in kind; `None` when the table does not have it.
    pub fn builtin(api_version: &str, kind: &str) -> Option<Self> {
        let (types, kinds) = &*BUILTIN;
        let root = *kinds.get(&(api_version.to_owned(), kind.to_owned()))?;
        Some(Self { types: types.clone(), root, builtin: true })
    }

    /// The type of a custom kind, from the `openAPIV3Schema` of its version.
    pub fn from_crd_schema(schema: &Value) -> Self {
        crd::object_type(schema)
    }

    /// The type of a kind without a schema: metadata as usual, everything else deduced, lists as one value.
    pub fn schemaless() -> Self {
        SCHEMALESS.clone()
    }

    /// What the server writes for an object of this type that has nothing set.
    pub(crate) fn empty(&self) -> Value {
        if self.builtin { round_trip::empty(&self.types, self.root) } else { Value::Object(Map::new()) }
    }

    /// Does to an object of a built-in kind what decoding and encoding it does in the server: fields that the kind
    /// does not have go, empty ones too, except those that are always written. Returns the paths of unknown
    /// fields, sorted, at most 100 (`spec.containers[0].bogus`). Custom kinds are left alone.
    ///
    /// # Errors
    /// What the JSON decoder says about a value of the wrong type.
    pub fn normalize(&self, object: &mut Value) -> Result<Vec<String>, String> {
        if self.builtin { round_trip::normalize(&self.types, self.root, object) } else { Ok(Vec::new()) }
    }
}

impl Types {
    pub(crate) fn add(&mut self, node: Node) -> TypeId {
        let id = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        self.nodes.push(node);
        TypeId(id)
    }

    pub(crate) fn set(&mut self, id: TypeId, node: Node) {
        if let Some(slot) = self.nodes.get_mut(id.0 as usize) {
            *slot = node;
        }
    }

    pub(crate) fn node(&self, id: TypeId) -> &Node {
        self.nodes.get(id.0 as usize).unwrap_or(&Node::Any)
    }

    /// How a value of a type is merged. A value that does not fit its type is a leaf.
    pub(crate) fn shape(&self, id: TypeId, value: &Value) -> Shape<'_> {
        match (self.node(id), value) {
            (Node::List(list), Value::Array(_) | Value::Null) if !matches!(list.kind, ListKind::Atomic) => {
                Shape::List(list)
            }
            (Node::Map(map), Value::Object(_) | Value::Null) if !map.atomic => Shape::Map(map),
            (Node::Any, Value::Object(_)) => Shape::Deduced,
            _ => Shape::Leaf,
        }
    }
}

impl MapType {
    /// The type of a field; `None`: the map has no such field.
    pub(crate) fn field(&self, name: &str) -> Option<TypeId> {
        self.fields.get(name).map(|field| field.ty).or(self.extra)
    }
}

#[cfg(test)]
mod tests;
