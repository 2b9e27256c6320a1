// Starts the headless browsers.

import { mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import puppeteer from 'puppeteer-core'

const CHROMIUM_ARGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  // Gather a candidate on the loopback interface too: a machine without another one could not dial.
  '--allow-loopback-in-peer-connection'
]

// The trial with which Chromium refuses SDP whose ufrag or password a page has changed.
const NO_MUNGE_ARG = '--force-fieldtrials=WebRTC-NoSdpMangleUfrag/Enabled/'

// The lines that the SCTP of Firefox, and nothing else, writes to the log.
const FIREFOX_SCTP_TRACES = { dcsctp: 'SendPacketWithStatus', usrsctp: 'usrsctp_init' }

export const FIREFOX_SCTPS = Object.keys(FIREFOX_SCTP_TRACES)

/** Arguments of Puppeteer with which hidden tabs run like others. */
const NO_THROTTLE_ARGS = [
  '--disable-background-timer-throttling',
  '--disable-backgrounding-occluded-windows',
  '--disable-renderer-backgrounding'
]

/** Every launcher returns a browser, and a function to call once that is closed. */
export async function launchChromium ({ noMunge = false, args = [], throttle = false }) {
  const browser = await puppeteer.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    headless: true,
    ignoreDefaultArgs: throttle ? NO_THROTTLE_ARGS : [],
    args: [...CHROMIUM_ARGS, ...noMunge ? [NO_MUNGE_ARG] : [], ...args],
    // The browser ends with the pipe, so also when this process is killed.
    pipe: true
  })
  return { browser, usedSctps: () => [] }
}

export async function launchFirefox ({ sctp }) {
  const directory = mkdtempSync(join(tmpdir(), 'anabranch-firefox-'))
  const logs = join(directory, 'logs')
  mkdirSync(logs)
  const browser = await puppeteer.launch({
    browser: 'firefox',
    executablePath: fileURLToPath(new URL('firefox.sh', import.meta.url)),
    headless: true,
    userDataDir: join(directory, 'profile'),
    env: { ...process.env, MOZ_LOG: 'DataChannel:4', MOZ_LOG_FILE: join(logs, 'log') },
    extraPrefsFirefox: { 'media.peerconnection.sctp.use_dcsctp': sctp === 'dcsctp' }
  })
  // After Puppeteer's own handler, which kills the browser.
  process.on('exit', () => rmSync(directory, { recursive: true, force: true, maxRetries: 5 }))
  return { browser, usedSctps: () => readSctps(logs) }
}

/** The implementations of SCTP that have run: a removed preference has no effect. */
function readSctps (logs) {
  const texts = readdirSync(logs).map(file => readFileSync(join(logs, file), 'latin1'))
  return FIREFOX_SCTPS.filter(sctp => texts.some(text => text.includes(FIREFOX_SCTP_TRACES[sctp])))
}
