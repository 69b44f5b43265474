//! What of a variable expressions can look at. A policy about two fields need not convert the rest of the object.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::tree::{List, Value};
use kube_cel::cel::IdedExpr;
use kube_cel::cel::common::ast::Expr;

use super::cost::children;

/// The parts of a variable that some expressions name; nothing by default, not even what they only ask to be there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Reach {
    /// These fields, and of each so much.
    Fields(BTreeMap<String, Reach>),
    /// Of each item of a list so much.
    Items(Box<Reach>),
    /// All of it.
    Whole,
}

impl Default for Reach {
    fn default() -> Self {
        Self::Fields(BTreeMap::new())
    }
}

/// A step from a value to a part of it.
#[derive(Clone, Copy)]
enum Step<'a> {
    Field(&'a str),
    Item,
}

/// A name that stands for a part of the variable; `None`: for something else.
type Scope<'a> = Vec<(&'a str, Option<Vec<Step<'a>>>)>;

impl Reach {
    /// Adds what an expression names of a variable. What is used by itself, not by its fields, is looked at as a
    /// whole.
    pub(super) fn add<'a>(&mut self, tree: &'a IdedExpr, variable: &'a str) {
        self.visit(tree, &mut vec![(variable, Some(Vec::new()))]);
    }

    fn visit<'a>(&mut self, node: &'a IdedExpr, scope: &mut Scope<'a>) {
        if let Some((path, end)) = path(node, scope) {
            return self.add_path(&path, end);
        }
        let Expr::Comprehension(each) = &node.expr else {
            return children(node).into_iter().for_each(|child| self.visit(child, scope));
        };
        let range =
            path(&each.iter_range, scope).filter(|_| each.iter_var2.is_none()).map(|(mut path, _)| {
                path.push(Step::Item);
                path
            });
        match &range {
            Some(path) => self.add_path(path, Self::default()),
            None => self.visit(&each.iter_range, scope),
        }
        let outside = scope.len();
        scope.extend(each.iter_var2.iter().map(|second| (second.as_str(), None)));
        scope.push((&each.iter_var, range));
        for part in [&each.accu_init, &each.loop_cond, &each.loop_step, &each.result] {
            self.visit(part, scope);
        }
        scope.truncate(outside);
    }

    /// Adds so much of what a path leads to.
    fn add_path(&mut self, path: &[Step<'_>], end: Self) {
        let [first, rest @ ..] = path else { return self.merge(end) };
        match first {
            Step::Field(name) => {
                self.merge(Self::Fields(BTreeMap::from([((*name).to_owned(), Self::default())])));
                if let Self::Fields(fields) = self {
                    fields.entry((*name).to_owned()).or_default().add_path(rest, end);
                }
            }
            Step::Item => {
                self.merge(Self::Items(Box::default()));
                if let Self::Items(items) = self {
                    items.add_path(rest, end);
                }
            }
        }
    }

    /// What both reach. A value of which one names fields and the other items is looked at as a whole.
    fn merge(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Fields(fields), Self::Fields(more)) => {
                for (name, reach) in more {
                    fields.entry(name).or_default().merge(reach);
                }
            }
            (Self::Items(items), Self::Items(more)) => items.merge(*more),
            (Self::Whole | Self::Items(_), Self::Fields(none)) if none.is_empty() => {}
            (Self::Fields(none), other) if none.is_empty() => *self = other,
            _ => *self = Self::Whole,
        }
    }

    /// The parts of a value within reach. What is neither object nor list where its parts are named stays as it is, so that
    /// expressions fail on it as they would on the whole value.
    pub fn of<'a>(&self, value: &'a Value) -> Cow<'a, Value> {
        match (self, value) {
            (Self::Fields(wanted), Value::Object(fields)) => {
                let present = wanted.iter().filter_map(|(name, reach)| {
                    Some((name.as_str(), reach.of(fields.get(name)?).into_owned()))
                });
                Cow::Owned(Value::Object(present.collect()))
            }
            (Self::Fields(wanted), Value::Array(_)) if wanted.is_empty() => {
                Cow::Owned(Value::Array(List::new()))
            }
            (Self::Items(reach), Value::Array(list)) => {
                Cow::Owned(list.iter().map(|item| reach.of(item).into_owned()).collect())
            }
            _ => Cow::Borrowed(value),
        }
    }
}

/// Where `name.a.b` leads from the variable, and how much of that is looked at: nothing by `has(name.a.b)`. `None` for any
/// other expression.
fn path<'a>(mut node: &'a IdedExpr, scope: &Scope<'a>) -> Option<(Vec<Step<'a>>, Reach)> {
    let end = match &node.expr {
        Expr::Select(select) if select.test => Reach::default(),
        _ => Reach::Whole,
    };
    let mut fields = Vec::new();
    loop {
        match &node.expr {
            Expr::Select(select) => {
                fields.push(Step::Field(&select.field));
                node = &select.operand;
            }
            Expr::Ident(name) => {
                let (_, base) = scope.iter().rev().find(|(there, _)| there == name)?;
                let mut path = base.clone()?;
                path.extend(fields.into_iter().rev());
                return Some((path, end));
            }
            _ => return None,
        }
    }
}
