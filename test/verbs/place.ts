/** Where the tests of verbs run: scripts/verbs-vm/guest.sh sets both. */
const provider = process.env['FABRICKV_TEST_PROVIDER'];
const sourceAddress = process.env['FABRICKV_TEST_SOURCE_ADDRESS'];

/** The address of the network interface that the RDMA device belongs to. */
export const ADDRESS = sourceAddress ?? '';

/** Why nothing here can run, or false when it can. */
export const WITHOUT_DEVICE: string | false =
  provider?.startsWith('verbs') === true && sourceAddress !== undefined
    ? false
    : 'needs an RDMA device: run scripts/test-verbs-vm.sh, which brings one along';
