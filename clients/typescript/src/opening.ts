/** Where to, as whom, and what for: the request that opens a stream. */

const PLANNED_URL = 'wss://ws.daimon.email/v1/stream';
const STREAM_PATH = '/v1/stream';
/** Of inboxes in the query of an opening; a head has 16 KiB at most. Others are subscribed to behind it. */
const MAX_QUERY_CHARACTERS = 4_000;
const SCHEMES: Record<string, string> = { 'http:': 'ws:', 'https:': 'wss:', 'ws:': 'ws:', 'wss:': 'wss:' };

/** Gives a fresh connection token for each opening. */
export type TokenFunction = () => string | Promise<string>;

/** What an opening asks for. */
export interface Asked {
  readonly inboxIds: readonly string[];
  readonly eventTypes: readonly string[] | undefined;
  readonly since: string | undefined;
  readonly clientId: string;
}

/**
 * The stream's URL: what is given, else the planned one; one without a scheme is below `here`, a page's address.
 *
 * @throws TypeError if it is no address of a broker
 */
export function urlOf(given: string | URL | undefined, here?: string): string {
  const said = String(given ?? PLANNED_URL);
  const url = parsed(said, here);
  const scheme = url && SCHEMES[url.protocol];
  if (!url || !scheme || !url.hostname) {
    throw new TypeError(`url: ${said} is no address of a broker, such as wss://broker.example/v1/stream`);
  }
  const path = url.pathname === '/' ? STREAM_PATH : url.pathname;
  return `${scheme}//${url.host}${path}${url.search}`;
}

function parsed(said: string, here: string | undefined): URL | undefined {
  try {
    if (said.includes('://')) return new URL(said);
    return here === undefined ? new URL(`ws://${said}`) : new URL(said, here);
  } catch {
    return undefined;
  }
}

/** The address without its query, in words for people. */
export function placeOf(url: string): string {
  return new URL(url).host;
}

/** Warn of a key that goes over the network for everybody to read. */
export function warnOfClearText(url: string): void {
  const { protocol, hostname } = new URL(url);
  const isThisHost = /^(localhost|.*\.localhost|127(\.\d+){3}|\[::1\])$/.test(hostname);
  if (protocol === 'ws:' && !isThisHost) {
    console.warn(`daimon-email: the key goes to ${hostname} in the clear: use wss://`);
  }
}

/**
 * A token for one opening.
 *
 * @throws what the function throws, and TypeError if it gives none
 */
export async function freshToken(token: TokenFunction): Promise<string> {
  const fresh = await token();
  if (typeof fresh !== 'string' || fresh === '') throw new TypeError('token: the function gave none');
  return fresh;
}

/** The URL to open with what is asked for in its query, and the inboxes that did not fit into it. */
export function streamUrl(url: string, asked: Asked): { url: string; late: string[] } {
  const named: string[] = [];
  const late: string[] = [];
  let size = 0;
  for (const inboxId of asked.inboxIds) {
    size += encodeURIComponent(inboxId).length + 3;
    (size <= MAX_QUERY_CHARACTERS ? named : late).push(inboxId);
  }
  const query = new URLSearchParams();
  if (named.length > 0) query.set('inbox_ids', named.join(','));
  if (asked.eventTypes !== undefined) query.set('event_types', asked.eventTypes.join(','));
  if (asked.since !== undefined) query.set('since', asked.since);
  query.set('client_id', asked.clientId);
  return { url: `${url}${url.includes('?') ? '&' : '?'}${query}`, late };
}
