// SPDX-License-Identifier: GPL-2.0-only
/*
 * A VFIO variant driver that makes virtual GPUs of the VFs of QEMU's igb, as far as the host can tell: it keeps the sysfs
 * contract of NVIDIA's driver for virtual GPUs on SR-IOV VFs. The guest sees the igb VF.
 *
 *   nvidia/creatable_vgpu_types   the types that can be set on this VF now; nothing when it has a type
 *   nvidia/current_vgpu_type      the type of this VF; 0 is none. It can be written while nobody has the VF open.
 *
 * A VF without a type cannot be opened. The VFs of one PF share its memory, so that setting a type on one VF takes types
 * away from the others.
 *
 * The driver binds a VF only by driver_override. Its name is that of NVIDIA's, because programs know that one.
 * There is no MODULE_DEVICE_TABLE: libvirt would choose this driver for each igb VF that it binds to a VFIO driver.
 */
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/vfio_pci_core.h>
#include <linux/version.h>

#define PF_MEMORY 8 /* GiB */

struct vgpu_type {
	unsigned int id;
	const char *name;
	unsigned int memory; /* GiB */
};

static const struct vgpu_type types[] = {
	{ 1101, "Lab V8-2Q", 2 },
	{ 1102, "Lab V8-4Q", 4 },
	{ 1103, "Lab V8-8Q", 8 },
};

struct vf {
	struct vfio_pci_core_device core;
	struct list_head entry;
	const struct vgpu_type *type;
	bool open;
};

static LIST_HEAD(vfs);
static DEFINE_MUTEX(lock); /* of vfs, and of the type and open of each of them */

static struct vf *vf_of(struct device *dev)
{
	return container_of(dev_get_drvdata(dev), struct vf, core);
}

static unsigned int free_memory(const struct vf *asking)
{
	struct pci_dev *pf = pci_physfn(asking->core.pdev);
	unsigned int used = 0;
	const struct vf *vf;

	list_for_each_entry(vf, &vfs, entry)
		if (vf->type && pci_physfn(vf->core.pdev) == pf)
			used += vf->type->memory;
	return PF_MEMORY - used;
}

static ssize_t creatable_vgpu_types_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	const struct vf *vf = vf_of(dev);
	ssize_t length = 0;
	size_t i;

	guard(mutex)(&lock);
	if (vf->type)
		return 0;
	length += sysfs_emit_at(buf, length, "ID    : vGPU Name\n");
	for (i = 0; i < ARRAY_SIZE(types); i++)
		if (types[i].memory <= free_memory(vf))
			length += sysfs_emit_at(buf, length, "%-5u : %s\n", types[i].id, types[i].name);
	return length;
}
static DEVICE_ATTR_RO(creatable_vgpu_types);

static ssize_t current_vgpu_type_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	const struct vf *vf = vf_of(dev);

	guard(mutex)(&lock);
	return sysfs_emit(buf, "%u\n", vf->type ? vf->type->id : 0);
}

static ssize_t current_vgpu_type_store(struct device *dev, struct device_attribute *attr, const char *buf, size_t count)
{
	struct vf *vf = vf_of(dev);
	unsigned int id;
	size_t i;
	int error = kstrtouint(buf, 10, &id);

	if (error)
		return error;
	guard(mutex)(&lock);
	if (vf->open)
		return -EBUSY;
	if (!id) {
		vf->type = NULL;
		return count;
	}
	if (vf->type)
		return -EINVAL;
	for (i = 0; i < ARRAY_SIZE(types); i++)
		if (types[i].id == id)
			break;
	if (i == ARRAY_SIZE(types))
		return -ENODEV;
	if (types[i].memory > free_memory(vf))
		return -ENOSPC;
	vf->type = &types[i];
	return count;
}
static DEVICE_ATTR_RW(current_vgpu_type);

static struct attribute *attributes[] = {
	&dev_attr_creatable_vgpu_types.attr,
	&dev_attr_current_vgpu_type.attr,
	NULL,
};

static const struct attribute_group group = { .name = "nvidia", .attrs = attributes };
static const struct attribute_group *groups[] = { &group, NULL };

static int open_device(struct vfio_device *vdev)
{
	struct vf *vf = container_of(vdev, struct vf, core.vdev);
	int error;

	guard(mutex)(&lock);
	if (!vf->type)
		return -ENODEV;
	error = vfio_pci_core_enable(&vf->core);
	if (error)
		return error;
	vfio_pci_core_finish_enable(&vf->core);
	vf->open = true;
	return 0;
}

static void close_device(struct vfio_device *vdev)
{
	struct vf *vf = container_of(vdev, struct vf, core.vdev);

	vfio_pci_core_close_device(vdev);
	guard(mutex)(&lock);
	vf->open = false;
}

static const struct vfio_device_ops operations = {
	.name = "lab_vgpu",
	.init = vfio_pci_core_init_dev,
	.release = vfio_pci_core_release_dev,
	.open_device = open_device,
	.close_device = close_device,
	.ioctl = vfio_pci_core_ioctl,
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)
	.get_region_info_caps = vfio_pci_ioctl_get_region_info,
	.match_token_uuid = vfio_pci_core_match_token_uuid,
#endif
	.device_feature = vfio_pci_core_ioctl_feature,
	.read = vfio_pci_core_read,
	.write = vfio_pci_core_write,
	.mmap = vfio_pci_core_mmap,
	.request = vfio_pci_core_request,
	.match = vfio_pci_core_match,
	.bind_iommufd = vfio_iommufd_physical_bind,
	.unbind_iommufd = vfio_iommufd_physical_unbind,
	.attach_ioas = vfio_iommufd_physical_attach_ioas,
	.detach_ioas = vfio_iommufd_physical_detach_ioas,
};

static int probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct vf *vf;
	int error;

	if (!pdev->is_virtfn)
		return -ENODEV;
	vf = vfio_alloc_device(vf, core.vdev, &pdev->dev, &operations);
	if (IS_ERR(vf))
		return PTR_ERR(vf);
	dev_set_drvdata(&pdev->dev, &vf->core);
	scoped_guard(mutex, &lock)
		list_add(&vf->entry, &vfs);
	error = vfio_pci_core_register_device(&vf->core);
	if (!error)
		return 0;
	scoped_guard(mutex, &lock)
		list_del(&vf->entry);
	vfio_put_device(&vf->core.vdev);
	return error;
}

static void remove(struct pci_dev *pdev)
{
	struct vf *vf = vf_of(&pdev->dev);

	vfio_pci_core_unregister_device(&vf->core);
	scoped_guard(mutex, &lock)
		list_del(&vf->entry);
	vfio_put_device(&vf->core.vdev);
}

static const struct pci_device_id ids[] = {
	{ PCI_DRIVER_OVERRIDE_DEVICE_VFIO(PCI_VENDOR_ID_INTEL, 0x10ca) },
	{}
};

static struct pci_driver vf_driver = {
	.name = "nvidia",
	.id_table = ids,
	.probe = probe,
	.remove = remove,
	.dev_groups = groups,
	.err_handler = &vfio_pci_core_err_handlers,
	.driver_managed_dma = true,
};
module_pci_driver(vf_driver);

MODULE_DESCRIPTION("Virtual GPUs on the VFs of QEMU's igb, by the sysfs contract of NVIDIA's driver");
MODULE_LICENSE("GPL");
