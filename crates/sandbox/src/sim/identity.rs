//! Who each simulated component is to the API server. Requests carry impersonation headers, so
//! that admission, authorisation and the audit log see the user that the real component has.

use std::sync::Arc;

/// The namespace that `KubeVirt` is installed in.
pub const KUBEVIRT_NAMESPACE: &str = "kubevirt";

/// The key of the bound token's node claim in `userInfo.extra` (`authentication.k8s.io`).
pub const NODE_NAME_EXTRA: &str = "authentication.kubernetes.io/node-name";

/// A user, its groups, and what it calls itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Identity {
    pub user: Arc<str>,
    pub groups: Arc<[&'static str]>,
    /// The node of the pod that the component runs in, for components that prove it.
    pub node: Option<Arc<str>>,
    pub agent: &'static str,
}

impl Identity {
    /// `system:node:NAME`
    pub fn kubelet(node: &str) -> Self {
        Self {
            user: format!("system:node:{node}").into(),
            groups: ["system:nodes", "system:authenticated"].into(),
            node: None,
            agent: "kubelet/v1.36.2 (linux/amd64) kubernetes",
        }
    }

    pub fn scheduler() -> Self {
        Self {
            user: "system:kube-scheduler".into(),
            groups: ["system:authenticated"].into(),
            node: None,
            agent: "kube-scheduler/v1.36.2 (linux/amd64) kubernetes/scheduler",
        }
    }

    pub fn node_controller() -> Self {
        Self::kube_system(
            "node-controller",
            "kube-controller-manager/v1.36.2 (linux/amd64) kubernetes/node-controller",
        )
    }

    /// The garbage collector of pods.
    pub fn pod_collector() -> Self {
        Self::kube_system(
            "pod-garbage-collector",
            "kube-controller-manager/v1.36.2 (linux/amd64) kubernetes/pod-garbage-collector",
        )
    }

    pub fn claim_controller() -> Self {
        Self::kube_system(
            "resource-claim-controller",
            "kube-controller-manager/v1.36.2 (linux/amd64) kubernetes/resource-claim-controller",
        )
    }

    fn kube_system(account: &str, agent: &'static str) -> Self {
        Self {
            user: format!("system:serviceaccount:kube-system:{account}").into(),
            groups: ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"]
                .into(),
            node: None,
            agent,
        }
    }

    /// Provisioner, resizer and snapshotter of the simulated storage.
    pub fn storage() -> Self {
        Self {
            user: "system:serviceaccount:kube-system:sandbox-storage".into(),
            groups: ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"]
                .into(),
            node: None,
            agent: "csi-provisioner/v6.1.0 (linux/amd64)",
        }
    }

    /// `CDI`'s controller.
    pub fn cdi() -> Self {
        Self {
            user: "system:serviceaccount:cdi:cdi-sa".into(),
            groups: ["system:serviceaccounts", "system:serviceaccounts:cdi", "system:authenticated"].into(),
            node: None,
            agent: "cdi-controller/v1.63.1 (linux/amd64)",
        }
    }

    pub fn job_controller() -> Self {
        Self {
            user: "system:serviceaccount:kube-system:job-controller".into(),
            groups: ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"]
                .into(),
            node: None,
            agent: "kube-controller-manager/v1.36.2 (linux/amd64) kubernetes/job-controller",
        }
    }

    pub fn virt_controller() -> Self {
        Self::kubevirt("kubevirt-controller", "virt-controller/v1.9.0 (linux/amd64)")
    }

    pub fn virt_api() -> Self {
        Self::kubevirt("kubevirt-apiserver", "virt-api/v1.9.0 (linux/amd64)")
    }

    /// The controller of templates made from VMs.
    pub fn template_controller() -> Self {
        Self::kubevirt("virt-template-controller", "virt-template-controller/v0.2.0 (linux/amd64)")
    }

    /// The server of `subresources.template.kubevirt.io`.
    pub fn template_api() -> Self {
        Self::kubevirt("virt-template-apiserver", "virt-template-apiserver/v0.2.0 (linux/amd64)")
    }

    /// virt-handler on one node: its token is bound to the node, which virt-api's node restriction
    /// asks for (`KubeVirt` 1.4 and later).
    pub fn virt_handler(node: &str) -> Self {
        let node = Some(node.into());
        Self { node, ..Self::kubevirt("kubevirt-handler", "virt-handler/v1.9.0 (linux/amd64)") }
    }

    fn kubevirt(account: &str, agent: &'static str) -> Self {
        Self {
            user: format!("system:serviceaccount:{KUBEVIRT_NAMESPACE}:{account}").into(),
            groups: ["system:serviceaccounts", "system:serviceaccounts:kubevirt", "system:authenticated"]
                .into(),
            node: None,
            agent,
        }
    }
}
