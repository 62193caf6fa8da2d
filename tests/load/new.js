// New operations: each request has a key of its own and takes effect.
// In: see common.js. Out: requests a second, p50, p99.
import * as load from './common.js';

export const options = load.options('new');
export const handleSummary = load.summary('new');

export default function () {
    load.post(load.key(__ITER), load.posting());
}
