//! The kinds that the simulation reads and writes, and their paths.

/// One kind of object, as discovery describes it.
#[derive(Debug, Eq, Hash, PartialEq)]
pub struct Resource {
    /// Empty for core.
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    pub kind: &'static str,
    pub namespaced: bool,
}

impl Resource {
    const fn core(plural: &'static str, kind: &'static str, namespaced: bool) -> Self {
        Self { group: "", version: "v1", plural, kind, namespaced }
    }

    const fn new(
        group: &'static str,
        version: &'static str,
        plural: &'static str,
        kind: &'static str,
    ) -> Self {
        Self { group, version, plural, kind, namespaced: true }
    }

    const fn cluster(
        group: &'static str,
        version: &'static str,
        plural: &'static str,
        kind: &'static str,
    ) -> Self {
        Self { group, version, plural, kind, namespaced: false }
    }

    /// `v1`, or `group/version`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.into() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The path of a collection (`name` empty), an object, or a subresource. `namespace` empty:
    /// all namespaces.
    pub fn path(&self, namespace: &str, name: &str, subresource: &str) -> String {
        let mut path = if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        };
        if self.namespaced && !namespace.is_empty() {
            path.push_str("/namespaces/");
            path.push_str(namespace);
        }
        for segment in [self.plural, name, subresource] {
            if !segment.is_empty() {
                path.push('/');
                path.push_str(segment);
            }
        }
        path
    }
}

pub static DEVICE_CLASSES: Resource =
    Resource::cluster("resource.k8s.io", "v1", "deviceclasses", "DeviceClass");
pub static RESOURCE_CLAIMS: Resource =
    Resource::new("resource.k8s.io", "v1", "resourceclaims", "ResourceClaim");
pub static RESOURCE_CLAIM_TEMPLATES: Resource =
    Resource::new("resource.k8s.io", "v1", "resourceclaimtemplates", "ResourceClaimTemplate");
pub static RESOURCE_SLICES: Resource =
    Resource::cluster("resource.k8s.io", "v1", "resourceslices", "ResourceSlice");
pub static NETWORKS: Resource =
    Resource::new("k8s.cni.cncf.io", "v1", "network-attachment-definitions", "NetworkAttachmentDefinition");
pub static NAMESPACES: Resource = Resource::core("namespaces", "Namespace", false);
pub static NODES: Resource = Resource::core("nodes", "Node", false);
pub static PODS: Resource = Resource::core("pods", "Pod", true);
pub static EVENTS: Resource = Resource::core("events", "Event", true);
pub static SERVICE_ACCOUNTS: Resource = Resource::core("serviceaccounts", "ServiceAccount", true);
pub static LEASES: Resource = Resource::new("coordination.k8s.io", "v1", "leases", "Lease");
pub static DAEMON_SETS: Resource = Resource::new("apps", "v1", "daemonsets", "DaemonSet");
pub static CONTROLLER_REVISIONS: Resource =
    Resource::new("apps", "v1", "controllerrevisions", "ControllerRevision");
pub static VMS: Resource = Resource::new("kubevirt.io", "v1", "virtualmachines", "VirtualMachine");
pub static VMIS: Resource =
    Resource::new("kubevirt.io", "v1", "virtualmachineinstances", "VirtualMachineInstance");
pub static TEMPLATE_REQUESTS: Resource = Resource::new(
    "template.kubevirt.io",
    "v1beta1",
    "virtualmachinetemplaterequests",
    "VirtualMachineTemplateRequest",
);
pub static TEMPLATES: Resource =
    Resource::new("template.kubevirt.io", "v1beta1", "virtualmachinetemplates", "VirtualMachineTemplate");
pub static MIGRATIONS: Resource =
    Resource::new("kubevirt.io", "v1", "virtualmachineinstancemigrations", "VirtualMachineInstanceMigration");
pub static MIGRATION_POLICIES: Resource =
    Resource::cluster("migrations.kubevirt.io", "v1alpha1", "migrationpolicies", "MigrationPolicy");
pub static SERVICES: Resource = Resource::core("services", "Service", true);
pub static CONFIG_MAPS: Resource = Resource::core("configmaps", "ConfigMap", true);
pub static ENDPOINT_SLICES: Resource =
    Resource::new("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice");
pub static API_SERVICES: Resource =
    Resource::cluster("apiregistration.k8s.io", "v1", "apiservices", "APIService");
pub static CLAIMS: Resource = Resource::core("persistentvolumeclaims", "PersistentVolumeClaim", true);
pub static VOLUMES: Resource = Resource::core("persistentvolumes", "PersistentVolume", false);
pub static STORAGE_CLASSES: Resource =
    Resource::cluster("storage.k8s.io", "v1", "storageclasses", "StorageClass");
pub static VOLUME_ATTACHMENTS: Resource =
    Resource::cluster("storage.k8s.io", "v1", "volumeattachments", "VolumeAttachment");
pub static DATA_VOLUMES: Resource = Resource::new("cdi.kubevirt.io", "v1beta1", "datavolumes", "DataVolume");
pub static DATA_SOURCES: Resource = Resource::new("cdi.kubevirt.io", "v1beta1", "datasources", "DataSource");
pub static STORAGE_PROFILES: Resource =
    Resource::cluster("cdi.kubevirt.io", "v1beta1", "storageprofiles", "StorageProfile");
pub static CDIS: Resource = Resource::cluster("cdi.kubevirt.io", "v1beta1", "cdis", "CDI");
pub static VOLUME_SNAPSHOTS: Resource =
    Resource::new("snapshot.storage.k8s.io", "v1", "volumesnapshots", "VolumeSnapshot");
pub static VOLUME_SNAPSHOT_CONTENTS: Resource =
    Resource::cluster("snapshot.storage.k8s.io", "v1", "volumesnapshotcontents", "VolumeSnapshotContent");
pub static VOLUME_SNAPSHOT_CLASSES: Resource =
    Resource::cluster("snapshot.storage.k8s.io", "v1", "volumesnapshotclasses", "VolumeSnapshotClass");
pub static JOBS: Resource = Resource::new("batch", "v1", "jobs", "Job");
pub static SECRETS: Resource = Resource::core("secrets", "Secret", true);
pub static EXPORTS: Resource =
    Resource::new("export.kubevirt.io", "v1", "virtualmachineexports", "VirtualMachineExport");
/// Before v1.9.
pub static EXPORTS_V1BETA1: Resource =
    Resource::new("export.kubevirt.io", "v1beta1", "virtualmachineexports", "VirtualMachineExport");
pub static SNAPSHOTS: Resource =
    Resource::new("snapshot.kubevirt.io", "v1beta1", "virtualmachinesnapshots", "VirtualMachineSnapshot");
pub static SNAPSHOT_CONTENTS: Resource = Resource::new(
    "snapshot.kubevirt.io",
    "v1beta1",
    "virtualmachinesnapshotcontents",
    "VirtualMachineSnapshotContent",
);
pub static BACKUPS: Resource =
    Resource::new("backup.kubevirt.io", "v1alpha1", "virtualmachinebackups", "VirtualMachineBackup");
pub static BACKUP_TRACKERS: Resource = Resource::new(
    "backup.kubevirt.io",
    "v1alpha1",
    "virtualmachinebackuptrackers",
    "VirtualMachineBackupTracker",
);
pub static RESTORES: Resource =
    Resource::new("snapshot.kubevirt.io", "v1beta1", "virtualmachinerestores", "VirtualMachineRestore");
pub static CLONES: Resource =
    Resource::new("clone.kubevirt.io", "v1beta1", "virtualmachineclones", "VirtualMachineClone");
/// Before v1.6.
pub static CLONES_V1ALPHA1: Resource =
    Resource::new("clone.kubevirt.io", "v1alpha1", "virtualmachineclones", "VirtualMachineClone");
pub static KUBEVIRTS: Resource = Resource::new("kubevirt.io", "v1", "kubevirts", "KubeVirt");
pub static CLUSTER_ROLES: Resource =
    Resource::cluster("rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole");
pub static CLUSTER_ROLE_BINDINGS: Resource =
    Resource::cluster("rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding");
pub static PRIORITY_CLASSES: Resource =
    Resource::cluster("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass");
pub static POLICIES: Resource = Resource::cluster(
    "admissionregistration.k8s.io",
    "v1",
    "validatingadmissionpolicies",
    "ValidatingAdmissionPolicy",
);
pub static POLICY_BINDINGS: Resource = Resource::cluster(
    "admissionregistration.k8s.io",
    "v1",
    "validatingadmissionpolicybindings",
    "ValidatingAdmissionPolicyBinding",
);
pub static MUTATING_WEBHOOKS: Resource = Resource::cluster(
    "admissionregistration.k8s.io",
    "v1",
    "mutatingwebhookconfigurations",
    "MutatingWebhookConfiguration",
);
pub static VALIDATING_WEBHOOKS: Resource = Resource::cluster(
    "admissionregistration.k8s.io",
    "v1",
    "validatingwebhookconfigurations",
    "ValidatingWebhookConfiguration",
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_follow_group_scope_and_subresource() {
        for (resource, namespace, name, subresource, path) in [
            (&PODS, "ns", "p", "status", "/api/v1/namespaces/ns/pods/p/status"),
            (&PODS, "", "", "", "/api/v1/pods"),
            (&NODES, "", "n1", "", "/api/v1/nodes/n1"),
            (&VMS, "ns", "", "", "/apis/kubevirt.io/v1/namespaces/ns/virtualmachines"),
            (&CLUSTER_ROLES, "", "r", "", "/apis/rbac.authorization.k8s.io/v1/clusterroles/r"),
        ] {
            assert_eq!(resource.path(namespace, name, subresource), path);
        }
    }
}
