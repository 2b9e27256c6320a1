// The beginning of a download, in parts that survive the page wherever the browser stores anything:
// in the origin's private file system, otherwise in IndexedDB, otherwise in memory.

/** Bytes of a part. What has not filled one is lost with the page. */
const PART = 1024 * 1024
const NAME = 'anabranch-download'

/** Files are written where nobody sees them, and appear when they are closed: a part is whole. */
class Files {
  #directory

  static async open () {
    const files = new Files()
    const root = await navigator.storage.getDirectory()
    files.#directory = await root.getDirectoryHandle(NAME, { create: true })
    return files
  }

  async all () {
    const parts = []
    for await (const [name, handle] of this.#directory) parts.push([name, await handle.getFile()])
    return parts
  }

  async put (name, blob) {
    const handle = await this.#directory.getFileHandle(name, { create: true })
    const writable = await handle.createWritable()
    await writable.write(blob)
    await writable.close()
  }

  async clear () {
    for (const [name] of await this.all()) await this.#directory.removeEntry(name)
  }
}

const done = request => new Promise((resolve, reject) => {
  request.onsuccess = () => { resolve(request.result) }
  request.onerror = () => { reject(request.error) }
})

class Database {
  #database

  static async open () {
    const request = indexedDB.open(NAME, 1)
    request.onupgradeneeded = () => { request.result.createObjectStore(NAME) }
    const database = new Database()
    database.#database = await done(request)
    return database
  }

  #store (mode) {
    return this.#database.transaction(NAME, mode).objectStore(NAME)
  }

  async all () {
    const store = this.#store('readonly')
    const [names, blobs] = await Promise.all([done(store.getAllKeys()), done(store.getAll())])
    return names.map((name, index) => [name, blobs[index]])
  }

  async put (name, blob) {
    await done(this.#store('readwrite').put(blob, name))
  }

  async clear () {
    await done(this.#store('readwrite').clear())
  }
}

class Memory {
  #blobs = new Map()

  async all () {
    return [...this.#blobs]
  }

  async put (name, blob) {
    this.#blobs.set(name, blob)
  }

  async clear () {
    this.#blobs.clear()
  }
}

/** The first that can hold a part. Some browsers have the API and refuse to use it. */
async function storage () {
  for (const [where, Kind] of [['its private file system', Files], ['IndexedDB', Database]]) {
    try {
      const store = await Kind.open()
      await store.all()
      return { store, where }
    } catch (error) {
      console.debug(`${where}: ${error}`)
    }
  }
  return { store: new Memory(), where: 'memory, until the page is closed' }
}

export class Parts {
  /** Where the parts are, in words. */
  where
  #store
  #count = 0

  static async open () {
    const parts = new Parts()
    const { store, where } = await storage()
    parts.#store = store
    parts.where = where
    return parts
  }

  /** All that is here. */
  async blob () {
    const all = await this.#store.all()
    all.sort(([one], [other]) => one < other ? -1 : 1)
    this.#count = all.length
    return new Blob(all.map(([, blob]) => blob))
  }

  async clear () {
    await this.#store.clear()
    this.#count = 0
  }

  /** Takes what follows `blob()`. What it has when it is closed is a part too. */
  writable () {
    let held = []
    let length = 0
    const flush = async () => {
      if (length === 0) return
      const blob = new Blob(held)
      held = []
      length = 0
      await this.#store.put(String(this.#count++).padStart(8, '0'), blob)
    }
    return new WritableStream({
      write: async piece => {
        held.push(piece)
        length += piece.length
        if (length >= PART) await flush()
      },
      close: flush
    })
  }
}
