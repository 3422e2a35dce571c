// `ws`, with the planned host's name leading to a broker of this test.

import { createRequire } from 'node:module';

const { WebSocket } = createRequire(process.env.PACKAGE)('ws');

export default class extends WebSocket {
  constructor(url, ...rest) {
    super(url.replace('wss://ws.daimon.email', process.env.DAIMON_WS_URL), ...rest);
  }
}
