// SPDX-License-Identifier: GPL-2.0-only
/*
 * Makes QEMU's edu a parent of mediated devices of two types, which share the memory of the parent, so that creating a
 * device of one type takes devices of the other away.
 *
 * In the guest a mediated device is a PCI function 1234:1ab1 (small) or 1234:1ab2 (large) with a BAR of 4 KiB, which keeps
 * what is written to it until the device is reset. It has no interrupts and does no DMA. A vendor-specific capability at
 * 0x40 has its UUID as text, at 0x44, so that the guest can tell which mediated device it has.
 *
 * There is no MODULE_DEVICE_TABLE: the kernel would load the module when it finds an edu.
 */
#include <linux/delay.h>
#include <linux/mdev.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/uaccess.h>
#include <linux/vfio.h>
#include <linux/version.h>

#define CARD_MEMORY 8 /* MiB */
#define BAR_SIZE 4096
#define CAPABILITY 0x40
#define UUID_AT (CAPABILITY + 4)
#define OFFSET_SHIFT 40 /* the number of the region, in offsets of the device's file */

static const struct kind {
	const char *name;
	const char *title;
	u16 device;
	unsigned int memory; /* MiB */
} kinds[] = {
	{ "small", "Lab small (2 MiB)", 0x1ab1, 2 },
	{ "large", "Lab large (4 MiB)", 0x1ab2, 4 },
};

struct card {
	struct mdev_parent parent;
	struct mdev_type types[ARRAY_SIZE(kinds)];
	struct mdev_type *list[ARRAY_SIZE(kinds)];
	unsigned int free; /* MiB */
};

struct device_state {
	struct vfio_device vdev;
	struct card *card;
	const struct kind *kind;
	struct mutex lock; /* of what follows */
	u8 config[PCI_CFG_SPACE_SIZE];
	u8 bar[BAR_SIZE];
};

static DEFINE_MUTEX(lock); /* of the free memory of all cards */

static struct card *card_of(struct mdev_type *type)
{
	return container_of(type->parent, struct card, parent);
}

static const struct kind *kind_of(struct mdev_type *type)
{
	return &kinds[type - card_of(type)->types];
}

static unsigned int get_available(struct mdev_type *type)
{
	guard(mutex)(&lock);
	return card_of(type)->free / kind_of(type)->memory;
}

static ssize_t show_description(struct mdev_type *type, char *buf)
{
	return sysfs_emit(buf, "memory=%uM, memory of the card=%uM\n", kind_of(type)->memory, CARD_MEMORY);
}

static void reset(struct device_state *state)
{
	u8 *config = state->config;

	memset(state->bar, 0, sizeof(state->bar));
	config[PCI_COMMAND] = config[PCI_COMMAND + 1] = 0;
	memset(config + PCI_BASE_ADDRESS_0, 0, 4);
}

static void put16(u8 *at, u16 value)
{
	at[0] = value;
	at[1] = value >> 8;
}

static int init(struct vfio_device *vdev)
{
	struct device_state *state = container_of(vdev, struct device_state, vdev);
	struct mdev_device *mdev = to_mdev_device(vdev->dev);
	u8 *config = state->config;

	state->card = card_of(mdev->type);
	state->kind = kind_of(mdev->type);
	scoped_guard(mutex, &lock) {
		if (state->card->free < state->kind->memory)
			return -ENOSPC;
		state->card->free -= state->kind->memory;
	}
	mutex_init(&state->lock);
	put16(config + PCI_VENDOR_ID, 0x1234);
	put16(config + PCI_DEVICE_ID, state->kind->device);
	put16(config + PCI_STATUS, PCI_STATUS_CAP_LIST);
	put16(config + PCI_CLASS_DEVICE, 0x1200); /* a processing accelerator */
	put16(config + PCI_SUBSYSTEM_VENDOR_ID, 0x1234);
	put16(config + PCI_SUBSYSTEM_ID, 0x0001);
	config[PCI_CAPABILITY_LIST] = CAPABILITY;
	config[CAPABILITY] = PCI_CAP_ID_VNDR;
	config[CAPABILITY + 2] = 4 + UUID_STRING_LEN;
	/* The zero at the end of the text is beyond the capability, where zeros are. */
	snprintf(config + UUID_AT, UUID_STRING_LEN + 1, "%pUl", &mdev->uuid);
	return 0;
}

static void release(struct vfio_device *vdev)
{
	struct device_state *state = container_of(vdev, struct device_state, vdev);

	guard(mutex)(&lock);
	state->card->free += state->kind->memory;
}

static int open_device(struct vfio_device *vdev)
{
	reset(container_of(vdev, struct device_state, vdev));
	return 0;
}

static size_t size_of(unsigned int region)
{
	switch (region) {
	case VFIO_PCI_CONFIG_REGION_INDEX:
		return PCI_CFG_SPACE_SIZE;
	case VFIO_PCI_BAR0_REGION_INDEX:
		return BAR_SIZE;
	default:
		return 0;
	}
}

/* Returns how many bytes of a region can be read or written, and where they are. */
static ssize_t span(struct device_state *state, loff_t position, size_t count, u8 **at)
{
	unsigned int region = position >> OFFSET_SHIFT;
	u64 offset = position & ((1ULL << OFFSET_SHIFT) - 1);
	size_t size = size_of(region);

	if (offset >= size)
		return -EINVAL;
	*at = (region == VFIO_PCI_CONFIG_REGION_INDEX ? state->config : state->bar) + offset;
	return min_t(u64, count, size - offset);
}

static ssize_t read(struct vfio_device *vdev, char __user *buf, size_t count, loff_t *position)
{
	struct device_state *state = container_of(vdev, struct device_state, vdev);
	ssize_t length;
	u8 *at;

	guard(mutex)(&state->lock);
	length = span(state, *position, count, &at);
	if (length < 0)
		return length;
	if (copy_to_user(buf, at, length))
		return -EFAULT;
	*position += length;
	return length;
}

/* Returns the bits of a byte of the configuration space that can be written. */
static u8 writable(size_t offset)
{
	switch (offset) {
	case PCI_COMMAND:
		return PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
	case PCI_COMMAND + 1:
		return PCI_COMMAND_INTX_DISABLE >> 8;
	case PCI_BASE_ADDRESS_0 + 1:
		return 0xff & -(BAR_SIZE >> 8);
	case PCI_BASE_ADDRESS_0 + 2:
	case PCI_BASE_ADDRESS_0 + 3:
	case PCI_INTERRUPT_LINE:
		return 0xff;
	default:
		return 0;
	}
}

static ssize_t write(struct vfio_device *vdev, const char __user *buf, size_t count, loff_t *position)
{
	struct device_state *state = container_of(vdev, struct device_state, vdev);
	ssize_t length, i;
	u8 *at;

	guard(mutex)(&state->lock);
	length = span(state, *position, count, &at);
	if (length < 0)
		return length;
	if (at >= state->bar) {
		if (copy_from_user(at, buf, length))
			return -EFAULT;
	} else {
		for (i = 0; i < length; i++) {
			u8 mask = writable(at + i - state->config), value;

			if (get_user(value, (u8 __user *)buf + i))
				return -EFAULT;
			at[i] = (at[i] & ~mask) | (value & mask);
		}
	}
	*position += length;
	return length;
}

static int region_info(struct vfio_region_info *info)
{
	if (info->index >= VFIO_PCI_NUM_REGIONS)
		return -EINVAL;
	info->size = size_of(info->index);
	info->flags = info->size ? VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE : 0;
	info->offset = (u64)info->index << OFFSET_SHIFT;
	info->cap_offset = 0;
	return 0;
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)
static int get_region_info_caps(struct vfio_device *vdev, struct vfio_region_info *info, struct vfio_info_cap *caps)
{
	return region_info(info);
}
#endif

static long ioctl(struct vfio_device *vdev, unsigned int command, unsigned long argument)
{
	struct device_state *state = container_of(vdev, struct device_state, vdev);
	void __user *user = (void __user *)argument;

	switch (command) {
	case VFIO_DEVICE_GET_INFO: {
		struct vfio_device_info info;
		size_t size = offsetofend(struct vfio_device_info, num_irqs);

		if (copy_from_user(&info, user, size))
			return -EFAULT;
		if (info.argsz < size)
			return -EINVAL;
		info.flags = VFIO_DEVICE_FLAGS_PCI | VFIO_DEVICE_FLAGS_RESET;
		info.num_regions = VFIO_PCI_NUM_REGIONS;
		info.num_irqs = VFIO_PCI_NUM_IRQS;
		return copy_to_user(user, &info, size) ? -EFAULT : 0;
	}
	case VFIO_DEVICE_GET_REGION_INFO: { /* the kernel itself answers it since 6.19 */
		struct vfio_region_info info;
		size_t size = offsetofend(struct vfio_region_info, offset);
		int error;

		if (copy_from_user(&info, user, size))
			return -EFAULT;
		if (info.argsz < size)
			return -EINVAL;
		error = region_info(&info);
		if (error)
			return error;
		return copy_to_user(user, &info, size) ? -EFAULT : 0;
	}
	case VFIO_DEVICE_GET_IRQ_INFO: {
		struct vfio_irq_info info;
		size_t size = offsetofend(struct vfio_irq_info, count);

		if (copy_from_user(&info, user, size))
			return -EFAULT;
		if (info.argsz < size || info.index >= VFIO_PCI_NUM_IRQS)
			return -EINVAL;
		info.flags = 0;
		info.count = 0;
		return copy_to_user(user, &info, size) ? -EFAULT : 0;
	}
	case VFIO_DEVICE_RESET:
		scoped_guard(mutex, &state->lock)
			reset(state);
		return 0;
	default:
		return -ENOTTY;
	}
}

static const struct vfio_device_ops operations = {
	.name = "lab_mdev",
	.init = init,
	.release = release,
	.open_device = open_device,
	.read = read,
	.write = write,
	.ioctl = ioctl,
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 19, 0)
	.get_region_info_caps = get_region_info_caps,
#endif
	.bind_iommufd = vfio_iommufd_emulated_bind,
	.unbind_iommufd = vfio_iommufd_emulated_unbind,
	.attach_ioas = vfio_iommufd_emulated_attach_ioas,
	.detach_ioas = vfio_iommufd_emulated_detach_ioas,
};

static int mdev_probe(struct mdev_device *mdev)
{
	struct device_state *state = vfio_alloc_device(device_state, vdev, &mdev->dev, &operations);
	int error;

	if (IS_ERR(state))
		return PTR_ERR(state);
	dev_set_drvdata(&mdev->dev, state);
	error = vfio_register_emulated_iommu_dev(&state->vdev);
	if (error)
		vfio_put_device(&state->vdev);
	return error;
}

static void mdev_remove(struct mdev_device *mdev)
{
	struct device_state *state = dev_get_drvdata(&mdev->dev);

	vfio_unregister_group_dev(&state->vdev);
	vfio_put_device(&state->vdev);
}

static struct mdev_driver mdev_driver = {
	.device_api = VFIO_DEVICE_API_PCI_STRING,
	.probe = mdev_probe,
	.remove = mdev_remove,
	.get_available = get_available,
	.show_description = show_description,
	.driver = { .name = "lab_mdev", .owner = THIS_MODULE, .mod_name = KBUILD_MODNAME },
};

static int card_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct card *card = kzalloc(sizeof(*card), GFP_KERNEL);
	int error;
	size_t i;

	if (!card)
		return -ENOMEM;
	card->free = CARD_MEMORY;
	for (i = 0; i < ARRAY_SIZE(kinds); i++) {
		card->types[i].sysfs_name = kinds[i].name;
		card->types[i].pretty_name = kinds[i].title;
		card->list[i] = &card->types[i];
	}
	pci_set_drvdata(pdev, card);
	error = mdev_register_parent(&card->parent, &pdev->dev, &mdev_driver, card->list, ARRAY_SIZE(kinds));
	if (error)
		kfree(card);
	return error;
}

/* A driver that waits in its remove function, as one does whose device is still in use. */
static bool hold_removal;
module_param(hold_removal, bool, 0644);
MODULE_PARM_DESC(hold_removal, "wait in the removal of a card while this is set");

static void card_remove(struct pci_dev *pdev)
{
	struct card *card = pci_get_drvdata(pdev);

	while (READ_ONCE(hold_removal))
		msleep(100);
	mdev_unregister_parent(&card->parent);
	kfree(card);
}

static const struct pci_device_id ids[] = {
	{ PCI_DEVICE(0x1234, 0x11e8) },
	{}
};

static struct pci_driver card_driver = {
	.name = "lab_mdev",
	.id_table = ids,
	.probe = card_probe,
	.remove = card_remove,
};

static int __init load(void)
{
	int error = mdev_register_driver(&mdev_driver);

	if (error)
		return error;
	error = pci_register_driver(&card_driver);
	if (error)
		mdev_unregister_driver(&mdev_driver);
	return error;
}
module_init(load);

static void __exit unload(void)
{
	pci_unregister_driver(&card_driver);
	mdev_unregister_driver(&mdev_driver);
}
module_exit(unload);

MODULE_DESCRIPTION("Mediated devices on QEMU's edu");
MODULE_LICENSE("GPL");
